"""A sealed cache behind a plain HTTP server: read by names alone, and never written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import cachekd
from cachekd.errors import CachekdError, StoreError
from cachekd.store import retries
from cachekd.store.local_cache import LocalCache


class Served:
    """A folder behind a server that has no ranges; it keeps what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                asked.append(self.path)

        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}/cache"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
    with pytest.raises(CachekdError, match=r"127\.0\.0\.1"):
        cachekd.open_cache(url)
