"""Sources that are none of this machine's: tried again, told without secrets, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from exchanging import brought_in
from tiny import Family, Ran

from cachekd import ExportConfig, ImportConfig, export_cache, import_cache
from cachekd.store import retries

SECRETS = ("S3CR3T", "PASSW0RD")


class Ranges(SimpleHTTPRequestHandler):
    """Serves ranges of files; each is refused once with 503, and some always with 403."""

    asked: set[str] = set()  # noqa: RUF012

    def do_GET(self) -> None:
        """A range, or all."""
        path, own = self.translate_path(self.path), f"{self.path} {self.headers.get('Range')}"
        if "denied" in self.path or not Path(path).is_file():
            return self.send_error(403 if "denied" in self.path else 404)
        if own not in self.asked:
            self.asked.add(own)
            return self.send_error(503)
        data, total = Path(path).read_bytes(), Path(path).stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2]), total - 1)) if match else (0, total - 1)
        self.send_response(206 if match else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])
        return None

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is told."""


@pytest.fixture
def served(captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder with an export, `x.parquet`."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "CONTACT_SECONDS", 0.1)
    export_cache(ExportConfig(cache=str(captured), format="arrow", out=str(tmp_path / "www")))
    (file,) = (tmp_path / "www").glob("*.parquet")
    file.rename(tmp_path / "www" / "x.parquet")
    Ranges.asked = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=tmp_path / "www"))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_signed_url_is_imported_and_not_told(served: str, family: Family, tmp_path: Path) -> None:
    """Each range fails at first: it is tried again from where it was."""
    before = retries.counted()
    settings = {"format": "arrow", "teacher": "org/t", "tokenizer": str(family.teacher)}
    source = f"{served}/x.parquet?X-Amz-Signature=S3CR3T"
    far = import_cache(ImportConfig(source=(source,), cache=str(tmp_path / "far"), **settings))
    assert retries.since(before)["retries"] > 1
    near = brought_in(tmp_path / "www", family, tmp_path / "near", format="arrow", codec="packed")
    assert far["root"] == near["root"]
    for path in (tmp_path / "far").rglob("*"):
        assert path.is_dir() or b"S3CR3T" not in path.read_bytes()


@pytest.mark.parametrize(
    ("url", "code", "found"),
    [
        ("{served}/denied/x.parquet?X-Amz-Signature=S3CR3T", 1, "access is refused: 403"),
        ("{host}me:PASSW0RD@{port}/none.parquet?key=S3CR3T", 1, "no such file or folder"),
        ("http://me:PASSW0RD@127.0.0.1:9/x.parquet?key=S3CR3T", 1, "it cannot be read"),
        ("foo://me:PASSW0RD@x/y?key=S3CR3T", 2, "is not a location that can be opened"),
    ],
)
def test_refusals_tell_no_secrets(
    url: str,
    code: int,
    found: str,
    served: str,
    family: Family,
    cachekd: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    source = url.format(served=served, host="http://", port=served.removeprefix("http://"))
    flags = ("--format", "arrow", "--teacher", "t", "--tokenizer", family.teacher)
    refused = cachekd("import", source, *flags, "--cache", tmp_path / "in")
    assert refused.code == code and found in refused.err, refused.err
    assert "Traceback" not in refused.err and not (tmp_path / "in").exists()
    assert not any(secret in refused.err for secret in SECRETS), refused.err


def test_a_teacher_of_this_machine_is_named_without_its_folder(
    served: str, family: Family, tmp_path: Path
) -> None:
    settings = {"format": "arrow", "teacher": str(family.teacher)}
    report = brought_in(tmp_path / "www", family, tmp_path / "in", **settings)
    assert report["asserted"]["teacher"] == family.teacher.name
    assert str(family.teacher) not in (tmp_path / "in" / "cache.json").read_text()
