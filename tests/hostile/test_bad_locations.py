"""Locations out of reach, full, read-only or another's: a clear error, nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forking import Ended, Forked, command
from hosting import until
from runs import TRAINING
from s3 import SECRET
from s3_faults import Bucket, Fault
from tiny import Family, Ran, chat_rows, write_rows

import cachekd as package
from cachekd.store import disk, retries
from cachekd.store.io import Location
from cachekd.store.verify import verify

Run = Callable[..., Ran]
CANARY = "canary-b81c"
SPEC = ("--logits-top-k", 8, "--logits-values", "float16")  # of the fixture `sealed`


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short, and the local cache is the test's own."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six rows, of several units."""
    return write_rows(tmp_path / "data.jsonl", chat_rows(6))


def capture(family: Family, data: Path, cache: object, *further: object) -> list[object]:
    """Arguments of a capture whose teacher takes no time."""
    flags = ["--teacher", family.teacher, "--data", data, "--cache", cache, "--backend", "dummy"]
    return ["precompute", *flags, "--threads", 1, "--unit-tokens", 200, *further]


def training(family: Family, cache: object, out: Path) -> list[object]:
    flags = [part for name, value in TRAINING.items() for part in (f"--{name}", value)]
    return ["train", "--cache", cache, "--student", family.student, "--output-dir", out, *flags]


def says(ran: Ran | Ended, code: int, *parts: str) -> None:
    """It ended with this code and a message of a few lines that has these parts, and no secret."""
    assert ran.code == code, ran
    assert "Traceback" not in ran.err and ran.err.count("\n") <= 8, ran.err
    assert all(part in ran.err for part in parts), ran.err
    assert SECRET not in ran.err + ran.out and CANARY not in ran.err + ran.out


@pytest.fixture
def there(s3: Bucket, sealed: Path) -> Bucket:
    """A bucket with a cache."""
    for path in sealed.rglob("*"):
        if path.is_file() and path.name[0] != ".":
            s3.put(f"cache/{path.relative_to(sealed)}", path.read_bytes())
    return s3


@pytest.mark.parametrize("verb", ["inspect", "verify", "precompute", "train"])
def test_a_server_that_refuses_the_credentials(
    s3: Bucket, cachekd: Run, family: Family, data: Path, tmp_path: Path, verb: str
) -> None:
    s3.proxy.plan[:] = [Fault("403", None, times=None)]
    further = ("--storage-options", f"key=AKIA-OTHER,secret={CANARY}")
    of = {
        "precompute": capture(family, data, s3.url()),
        "train": training(family, s3.url(), tmp_path / "out"),
    }
    ran = cachekd(*of.get(verb, [verb, s3.url()]), *further)
    says(ran, 1, s3.url(), "access is refused", "AWS_ACCESS_KEY_ID", "--storage-options")
    assert s3.objects() == {} and not (tmp_path / "out").exists()


def test_no_credentials_at_all(
    s3: Bucket, cachekd: Run, family: Family, data: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for arguments in (["inspect", s3.url()], capture(family, data, s3.url())):
        says(cachekd(*arguments), 1, "access is refused", "Check the credentials")
    assert s3.objects() == {}


@pytest.mark.parametrize("verb", ["inspect", "precompute", "train", "push"])
def test_a_bucket_that_is_not_there(
    s3: Bucket, cachekd: Run, family: Family, data: Path, cache: Path, tmp_path: Path, verb: str
) -> None:
    url = "s3://no-such-bucket-here/cache"
    of = {
        "inspect": ["inspect", url],
        "precompute": capture(family, data, url),
        "train": training(family, url, tmp_path / "out"),
        "push": ["push", cache, url],
    }
    says(cachekd(*of[verb]), 1, url, "there is no such bucket", "make the bucket first")
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_may_only_be_read(
    there: Bucket, cachekd: Run, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read; a writer is told before the teacher is loaded."""
    before = there.objects()
    there.proxy.plan[:] = [Fault("403", method, times=None) for method in ("PUT", "POST", "DELETE")]
    assert cachekd("inspect", there.url()).code == cachekd("verify", there.url()).code == 0
    more = write_rows(tmp_path / "more.jsonl", chat_rows(3, first=70))
    from cachekd.teachers.dummy import DummyTeacher

    monkeypatch.setattr(DummyTeacher, "load", lambda *args: pytest.fail("the model was loaded"))
    says(cachekd(*capture(family, more, there.url(), *SPEC)), 1, there.url(), "access is refused")
    assert there.objects() == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_only_be_read(
    cachekd: Run,
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    for operation in ("open_new", "make_folder", "open_lock"):
        monkeypatch.setattr(disk, operation, refuse)
    ran = cachekd(*capture(family, data, tmp_path / "cache"))
    says(ran, 1, "cannot write to", os.strerror(number), "write access")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("operation", ["reserve", "write_at"])
def test_the_disk_of_the_local_cache_is_full(
    there: Bucket,
    cachekd: Run,
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(disk, operation, full)
        ran = cachekd(*training(family, there.url(), tmp_path / "out"))
    says(ran, 1, str(tmp_path / "local"), "No space left", "--local-cache-size")
    assert [path.name for path in (tmp_path / "local").iterdir()] == [".lock"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_hub_is_switched_off(cachekd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ran = cachekd("inspect", "hf://datasets/team/news")
    says(ran, 1, "hf://datasets/team/news", "HF_HUB_OFFLINE", "a local copy")


def test_a_protocol_that_nobody_knows(
    cachekd: Run, family: Family, data: Path, tmp_path: Path
) -> None:
    for arguments in (["inspect", "nowhere://x/cache"], capture(family, data, "nowhere://x/cache")):
        says(cachekd(*arguments), 2, "nowhere://x/cache", "not a location that can be opened")


def test_the_package_of_a_protocol_is_not_installed(family: Family, data: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from cachekd_cli.main import main; main()"
    arguments = map(str, capture(family, data, "s3://bucket/cache"))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    ended = Ended(done.returncode, done.stdout, done.stderr)
    says(ended, 2, "'s3://bucket/cache' cannot be opened", "pip install 'cachekd[s3]'")


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_another_capture_is_no_continuation(
    there: Bucket, cache: Path, cachekd: Run, family: Family, data: Path, kind: str
) -> None:
    place = there.url() if kind == "s3" else str(cache)
    before = there.objects(), sorted(cache.rglob("*"))
    ran = cachekd(*capture(family, data, place, "--logits-top-k", 9))
    says(ran, 5, place, "do not belong together", "selection.k: 8 / 9")
    assert (there.objects(), sorted(cache.rglob("*"))) == before


def begins_with_the_other(run: Callable[[], None], folder: Path, number: int) -> Callable[[], None]:
    """A writer that has found an empty place, and waits there until both have."""

    def start() -> None:
        from cachekd.capture import scoring

        write = scoring.write_identity

        def when_both_are_here(*args: Any) -> None:
            (folder / f"here-{number}").touch()
            until(lambda: len([*folder.glob("here-*")]) == 2)
            write(*args)

        scoring.write_identity = when_both_are_here
        run()

    return start


@pytest.mark.reliability
@pytest.mark.parametrize("differ", ["capture", "teacher"])
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_of_two_different_writers_at_once_one_makes_the_cache(
    s3: Bucket, family: Family, data: Path, tmp_path: Path, kind: str, differ: str
) -> None:
    """The identity that comes first counts; the other writer leaves nothing of its own."""
    place = s3.url() if kind == "s3" else str(tmp_path / "cache")
    teachers, sizes = [family.teacher, family.teacher], [8, 9]
    if differ == "teacher":
        teachers, sizes = [family.teacher, family.student], [8, 8]
    writers = []
    for number, (teacher, size) in enumerate(zip(teachers, sizes, strict=True)):
        flags = capture(Family(teacher, teacher, 0), data, place, "--logits-top-k", size)
        run = begins_with_the_other(command(*flags), tmp_path, number)
        writers.append(Forked(run, tmp_path / f"writer-{number}"))
    ended = sorted((writer.end() for writer in writers), key=lambda one: one.code)
    assert ended[0].code == 0, ended
    says(ended[1], 5, place, "do not belong together")
    assert len(package.open_cache(place)) == 6 and verify(place).problems == ()
    plans = Location(place).names("plans")
    assert len(plans) == 1, "nothing of the other writer is there"
