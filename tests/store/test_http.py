"""A sealed cache behind a plain HTTP server: read by names alone, and never written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from s3_faults import Fault, faulty

import cachekd
from cachekd.errors import CachekdError, StoreError
from cachekd.store import remote, retries
from cachekd.store.local_cache import LocalCache


class Served:
    """A folder behind a server; it keeps what was asked for.

    Attributes:
        ranges: whether it heeds ranges.
        lie: by how many bytes the lengths are wrong that it tells without a body.
        missing: how it answers where there is no file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.lie, self.missing = folder, False, 0, 404
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, served=self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/cache"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, served: Served) -> None:
        self._served = served
        super().__init__(*args, directory=str(served.folder))

    def log_message(self, format: str, *args: object) -> None:
        self._served.asked.append(self.path)

    def send_error(self, code: int, *args: Any) -> None:
        super().send_error(self._served.missing if code == 404 else code, *args)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length" and self.command == "HEAD":
            value = str(int(value) + self._served.lie)
        super().send_header(keyword, value)

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (found and self._served.ranges and path.is_file()):
            return super().do_GET()
        whole, first, last = path.read_bytes(), int(found[1]), int(found[2])
        part = whole[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A copy of a sealed cache, served; the local cache is the test's own."""
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setattr(retries, "CONTACT_SECONDS", 0.2)
    shutil.copytree(sealed, tmp_path / "www" / "cache")
    served = Served(tmp_path / "www")
    yield served
    served.close()


def shards_of(asked: list[str]) -> list[str]:
    """Shards of logits that were asked for."""
    return [path for path in asked if path.startswith("/cache/logits/") and ".parquet" in path]


def test_records_are_those_of_the_folder_and_nothing_is_listed(
    served: Served, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, on_disk = cachekd.open_cache(served.url), cachekd.open_cache(str(sealed))
    assert cache.root == on_disk.root and len(cache) == len(on_disk) > 0
    for record in cache:
        other = on_disk.get(record.input_ids).logits
        assert record.logits.ids.tobytes() == other.ids.tobytes()
        assert record.logits.logprobs.tobytes() == other.logprobs.tobytes()
    assert served.asked and not [path for path in served.asked if path.endswith("/")]
    shards = shards_of(served.asked)
    assert shards and len({*shards}) == len(shards), "each is fetched once"
    served.asked.clear()
    looks: list[str] = []
    held = LocalCache.held
    monkeypatch.setattr(LocalCache, "held", lambda self: (looks.append(self.root), held(self))[1])
    assert [record.key for record in cachekd.open_cache(served.url)] == [r.key for r in cache]
    assert not shards_of(served.asked), "read here"
    assert len(looks) == 1, "nothing was taken away: no shard is looked for again"


def same_records(url: str, sealed: Path) -> bool:
    return all(
        one.key == two.key and one.logits.logprobs.tobytes() == two.logits.logprobs.tobytes()
        for one, two in zip(cachekd.open_cache(url), cachekd.open_cache(str(sealed)), strict=True)
    )


def test_a_server_with_ranges_is_read_in_pieces(
    served: Served, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    served.ranges = True
    assert same_records(served.url, sealed)
    shards, pieces = [*(sealed / "logits").glob("*.parquet")], shards_of(served.asked)
    assert len(pieces) == sum(-(-shard.stat().st_size // 1000) for shard in shards) > len(shards)


@pytest.mark.parametrize("kind", ["cut", "short", "flip", "plain", "503"])
@pytest.mark.parametrize("ranges", [True, False])
def test_bodies_that_are_not_whole_are_asked_for_again(
    served: Served, sealed: Path, ranges: bool, kind: str
) -> None:
    """Ended before the length that was told, told too short, other bytes, or all for a range."""
    served.ranges = ranges
    with faulty(served.url) as proxy:
        proxy.plan[:] = [Fault(kind, "GET", "/logits/.*parquet|/index/", times=2, at=100)]
        assert same_records(f"{proxy.url}/cache", sealed)
        assert proxy.faults() == {kind: 2}


@pytest.mark.parametrize("lie", [-10, 10])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_lies_about_lengths_is_refused(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool, lie: int
) -> None:
    monkeypatch.setattr(retries, "TOTAL_SECONDS", 0.1)
    served.ranges, served.lie = ranges, lie
    with pytest.raises(StoreError, match=r"/index/[0-9a-f]{64}: "):
        cachekd.open_cache(served.url)
    assert [path.name for path in (tmp_path / "local").iterdir()] == [".lock"]


def test_altered_shards_are_refused_by_name(served: Served) -> None:
    shard = next((served.folder / "cache" / "logits").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=shard.name):
        _ = [*cachekd.open_cache(served.url)]
    assert not [path for path in (served.folder.parent / "local").rglob(shard.stem + "*")]


def test_nothing_is_there_or_no_server(served: Served) -> None:
    with pytest.raises(CachekdError, match="nothing-here"):
        cachekd.open_cache(served.url.replace("/cache", "/nothing-here"))
    url = served.url
    served.close()
    with pytest.raises(CachekdError, match=r"127\.0\.0\.1.*[Cc]onnect") as told:
        cachekd.open_cache(url.replace("//", "//bob:canary@"))
    assert "canary" not in str(told.value)


def test_a_server_that_refuses_what_is_not_there_is_read_from(served: Served) -> None:
    served.missing = 403
    assert len([*cachekd.open_cache(served.url)]) > 0
    (served.folder / "cache" / "manifest-1.json").unlink()
    with pytest.raises(StoreError, match=r"access is refused.*credentials"):
        cachekd.open_cache(served.url)


@pytest.mark.parametrize("status", [401, 500])
def test_who_a_url_is_opened_as_is_not_told(
    served: Served, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.missing = status
    monkeypatch.setattr(retries, "TOTAL_SECONDS", 0.05)
    url = served.url.replace("//", "//bob:canary@").replace("/cache", "/nothing")
    with pytest.raises(StoreError) as told:
        cachekd.open_cache(url)
    assert "canary" not in str(told.value) and str(status) in str(told.value)
    assert ("credentials" in str(told.value)) == (status == 401)
