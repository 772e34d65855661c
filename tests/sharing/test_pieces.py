"""Files in pieces: their bytes, their checksums, what they take of memory, and what networks do."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from s3 import ask
from s3_faults import Bucket, Fault

from cachekd.errors import CorruptCache
from cachekd.sharing.content import Blob
from cachekd.sharing.copier import Copier
from cachekd.store.io import Location
from cachekd.store.pieces import Checked

from .transfers import bytes_of, fetch, send

pytestmark = pytest.mark.usefixtures("quick")
PIECE = 2000
NAME = "logits/" + "a" * 64 + ".parquet"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece has few bytes, so that small files have many."""
    for module in ("local", "remote"):
        monkeypatch.setattr(f"cachekd.store.{module}.PIECE_BYTES", PIECE)


def made_up(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def checked(data: bytes, digest: str | None = None) -> Checked:
    """These bytes in pieces, under their own digest unless another is given."""
    named = digest or hashlib.sha256(data).hexdigest()
    starts = range(0, max(1, len(data)), PIECE)
    return Checked("there", named, lambda: (data[n : n + PIECE] for n in starts), summed=True)


def uploads(s3: Bucket) -> int:
    """Uploads in parts that were begun and have not ended."""
    return ask(s3.server, "GET", f"/{s3.name}?uploads").count(b"<Upload>")


def parts(s3: Bucket) -> Counter[int]:
    """How often each part was sent."""
    asked = [parse_qs(urlsplit(one.path).query) for one in s3.proxy.seen if one.method == "PUT"]
    return Counter(int(query["partNumber"][0]) for query in asked if "partNumber" in query)


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_all_bytes_come_in_pieces(tmp_path: Path, kind: str, size: int) -> None:
    place = Location(str(tmp_path) if kind == "local" else f"memory://{tmp_path}")
    data = made_up(size)
    place.take(NAME, checked(data))
    assert place.read(NAME) == data
    pieces = list(place.pieces(NAME))
    assert b"".join(pieces) == data
    assert all(len(piece) == PIECE for piece in pieces[:-1])


@pytest.mark.parametrize("size", [PIECE, PIECE + 1, 3 * PIECE])
def test_the_checksum_is_that_of_the_server(s3: Bucket, size: int) -> None:
    place, pieces = Location(s3.url()), checked(made_up(size))
    place.take(NAME, pieces)
    listed = place.entries("logits")[NAME.partition("/")[2]]
    assert listed.etag == pieces.etag and listed.size == pieces.size == size
    assert ("-" in pieces.etag) == (size > PIECE)
    assert b"".join(place.pieces(NAME)) == made_up(size)


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_other_bytes_are_never_seen(tmp_path: Path, s3: Bucket, kind: str) -> None:
    urls = {"local": str(tmp_path / "there"), "memory": f"memory://{tmp_path}", "s3": s3.url()}
    place = Location(urls[kind])
    for size in (10, 3 * PIECE):
        with pytest.raises(CorruptCache, match="do not have the digest"):
            place.take(NAME, checked(made_up(size), "0" * 64))
    assert not place.exists(NAME) and place.names("logits") == []
    assert uploads(s3) == 0
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_cache_in_parts_there_and_back(s3: Bucket, shared: Path, tmp_path: Path) -> None:
    send(shared, s3.url())
    sizes = [int(one.headers["content-length"]) for one in s3.proxy.seen if "part" in one.path]
    assert parts(s3)[2] > 0 and max(sizes) < PIECE + 1000, "a part, and how it is signed"
    reads = [one.path for one in s3.proxy.seen if one.method == "GET" and "/logits/" in one.path]
    assert not [path for path in reads if ".parquet" in path], "checksums of parts tell"
    assert bytes_of(s3.url()) == bytes_of(shared)
    fetch(s3.url(), tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(shared)


FAULTS = {
    "a part is cut": (Fault("reset", "PUT", "partNumber=2", at=100), {2: 2}),
    "a part is refused": (Fault("500", "PUT", "partNumber=3", times=2), {3: 3}),
    "a part is sent twice": (Fault("lost", "PUT", "partNumber=1"), {1: 2}),
    "the beginning is lost": (Fault("lost", "POST", "uploads"), {}),
    "the end is lost": (Fault("lost", "POST", "uploadId"), {}),
    "the end is delivered twice": (Fault("twice", "POST", "uploadId"), {}),
    "the end is refused": (Fault("503", "POST", "uploadId", times=2), {}),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", FAULTS)
def test_only_a_part_is_sent_again(s3: Bucket, name: str) -> None:
    fault, again = FAULTS[name]
    s3.proxy.plan.append(Fault(fault.kind, fault.method, fault.match, fault.times, fault.at))
    data = made_up(3 * PIECE)
    place = Location(s3.url())
    place.take(NAME, checked(data))
    assert s3.proxy.faults()[fault.kind] == fault.times or fault.kind in ("reset", "lost")
    assert parts(s3) == {1: 1, 2: 1, 3: 1} | again
    assert place.read(NAME) == data


def test_an_upload_that_is_given_up_leaves_nothing(s3: Bucket) -> None:
    place, whole = Location(s3.url()), made_up(3 * PIECE)

    def broken() -> Iterator[bytes]:
        yield whole[:PIECE]
        yield whole[PIECE : 2 * PIECE]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.take(NAME, Checked("there", "0" * 64, broken))
    assert parts(s3)[1] == 1, "it had begun"
    assert not place.exists(NAME) and uploads(s3) == 0


def test_two_uploads_of_one_file_at_once(s3: Bucket) -> None:
    """Both have sent their parts before either ends its upload."""
    data, barrier = made_up(3 * PIECE), threading.Barrier(2, timeout=30)
    failed: list[BaseException] = []

    def read() -> Iterator[bytes]:
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]
        barrier.wait()

    def upload() -> None:
        try:
            Location(s3.url()).take(NAME, Checked("here", hashlib.sha256(data).hexdigest(), read))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert Location(s3.url()).read(NAME) == data and uploads(s3) == 0


def test_what_lies_there_damaged_is_mended(s3: Bucket) -> None:
    data = made_up(3 * PIECE)
    s3.put(f"cache/{NAME}", data[:-1])
    Location(s3.url()).take(NAME, checked(data))
    assert Location(s3.url()).read(NAME) == data


@pytest.mark.reliability
@pytest.mark.parametrize("kind", ["cut", "short", "flip", "500", "plain"])
def test_pieces_that_come_through_faults(s3: Bucket, tmp_path: Path, kind: str) -> None:
    """A piece that ends early is asked for again; other bytes are, with all of their file."""
    data = made_up(5 * PIECE + 7)
    name = f"logits/{hashlib.sha256(data).hexdigest()}.parquet"
    s3.put(f"cache/{name}", data)
    times = None if kind == "plain" else 2
    s3.proxy.plan.append(Fault(kind, "GET", "parquet", times=times, at=50))
    copier = Copier(Location(s3.url()), Location(str(tmp_path / "here")), 2)
    copier.copy({name: Blob(name.partition("/")[2].partition(".")[0], len(data))})
    assert s3.proxy.faults()[kind] > 0
    assert (tmp_path / "here" / name).read_bytes() == data


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_large_file_is_never_in_memory(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    piece, data = 1 << 18, made_up(6 << 20)
    for module in ("local", "remote"):
        monkeypatch.setattr(f"cachekd.store.{module}.PIECE_BYTES", piece)
    digest = hashlib.sha256(data).hexdigest()
    name = f"logits/{digest}.parquet"
    (tmp_path / "from" / "logits").mkdir(parents=True)
    (tmp_path / "from" / name).write_bytes(data)
    there = Location(s3.url() if kind == "s3" else str(tmp_path / "there"))
    there.check_writable()  # libraries are loaded, and the server was met
    del data
    for source, into in (("from", there), (there, "back")):
        ends = [
            Location(str(tmp_path / end)) if isinstance(end, str) else end for end in (source, into)
        ]
        tracemalloc.start()
        Copier(*ends, 1).copy({name: Blob(digest, 6 << 20)})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * piece, f"{peak} bytes of {6 << 20}"
    assert hashlib.sha256((tmp_path / "back" / name).read_bytes()).hexdigest() == digest
