"""Fixtures of the whole test tree."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from outside import passed_on
from s3 import s3_environment, s3_server
from s3_faults import Bucket, bucket_of
from tiny import Family, Ran, chat_rows, save_model, save_tokenizer, write_rows

# Before torch is imported: one thread a worker, and no file of the user's is touched.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CACHEKD_THREADS", "1")  # commands take all cores else, as each worker would
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cachekd-tests-")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove what the tests remembered; where CI is set, a skipped test is a failure."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    absent = os.environ.get("CI_ABSENT", "").split()
    skipped = [one for one in skipped if not any(tool in str(one.longrepr) for tool in absent)]
    if os.environ.get("CI") and skipped:
        names = ", ".join(report.nodeid for report in skipped)
        reporter.write_line(f"CI installs what tests need, and yet these were skipped: {names}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models that tests may read, never change."""
    root = tmp_path_factory.mktemp("family")
    teacher, student = root / "teacher", root / "student"
    vocab = save_tokenizer(teacher)
    save_model(teacher, vocab, width=32, layers=2, seed=1)
    shutil.copytree(teacher, student)
    save_model(student, vocab, width=16, layers=1, seed=2)
    return Family(teacher, student, vocab)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Copies a model folder so that a test may damage it."""

    def copy(folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty instruction rows."""
    return write_rows(tmp_path / "data.jsonl", chat_rows(30))


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server over HTTP, which is a process of its own."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, which S3 clients of this process reach through a proxy that takes faults."""
    from s3fs import S3FileSystem

    with bucket_of(s3_url) as bucket:
        for name, value in s3_environment(bucket.proxy.url).items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # a client keeps the address that it was made with
        yield bucket
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def cachekd(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs the command line in this process, as its entry point does."""
    (point,) = entry_points(group="console_scripts", name="cachekd")
    main = point.load()

    def run(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["cachekd", *map(str, args)])
        monkeypatch.setattr("cachekd_cli.main._leave", sys.exit)
        capsys.readouterr()
        code = 0
        hook = sys.unraisablehook
        with passed_on(monkeypatch):  # the command owns its process; this one goes on
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            finally:
                sys.unraisablehook = hook
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
