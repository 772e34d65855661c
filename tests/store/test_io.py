"""Files of a cache appear whole or not at all, never over another, and never outside."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import chat_rows

import cachekd
from cachekd.errors import ConfigError, CorruptCache, StoreError
from cachekd.store import disk, local
from cachekd.store.io import Location
from cachekd.store.verify import verify

NOBODY = 65534


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    local = request.param == "local"
    return Location(str(tmp_path / "c") if local else f"memory://{tmp_path}/c")


def test_create_never_writes_over(location: Location) -> None:
    assert location.create("units/a.json", b"first")
    assert not location.create("units/a.json", b"second")
    assert location.read("units/a.json") == b"first"
    assert location.names("units") == ["a.json"]


def test_replace_does_write_over(location: Location) -> None:
    location.replace("manifest.json", b"first")
    location.replace("manifest.json", b"second")
    assert location.read("manifest.json") == b"second"
    assert location.names() == ["manifest.json"]


def test_sizes_names_and_missing_files(location: Location) -> None:
    assert location.names("plans") == []
    location.create("plans/b", b"12345")
    location.create("plans/a", b"")
    assert location.names("plans") == ["a", "b"] and location.size("plans/b") == 5
    assert location.map("plans/b").to_pybytes() == b"12345"
    assert location.map("plans/a").size == 0
    assert location.exists("plans/a") and not location.exists("plans/c")
    for read in (location.read, location.map, location.size):
        with pytest.raises(CorruptCache, match=r"plans/c is missing.*Restore it"):
            read("plans/c")


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    location = Location(str(tmp_path / "c"))
    datas = [bytes([i]) * 4096 for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        for number in range(10):
            name = f"units/{number}"
            won = list(pool.map(lambda data, name=name: location.create(name, data), datas))
            assert sum(won) == 1
            assert location.read(name) == datas[won.index(True)]
    assert len(location.names("units")) == 10


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_filesystem_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, "link", link)
    location = Location(str(tmp_path))
    assert location.create("a", b"first") and not location.create("a", b"second")
    assert files(tmp_path) == {"a": b"first"}


@pytest.mark.parametrize(
    ("verb", "call"),
    [("create", call) for call in ("open_new", "write", "sync", "link")]
    + [("replace", call) for call in ("open_new", "write", "sync", "rename")],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, call: str, number: int
) -> None:
    """Also not a temporary file; the message names the path and the bytes."""
    location = Location(str(tmp_path))
    location.create("old", b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, call, fail)
    with pytest.raises(StoreError) as caught:
        getattr(location, verb)("new", b"x" * 77)
    monkeypatch.undo()
    assert all(part in str(caught.value) for part in (f"{tmp_path}/new", "77 bytes", "free space"))
    assert os.strerror(number) in str(caught.value)
    assert files(tmp_path) == {"old": b"old"}


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = disk.write
    monkeypatch.setattr(disk, "write", lambda file, data: whole(file, data[:10]))
    Location(str(tmp_path)).create("a", bytes(range(95)))
    assert (tmp_path / "a").read_bytes() == bytes(range(95))


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "a/../x", "/etc/passwd", "a//b", "", ".", "a/.hidden", "a\0b", "a\\b", "a/b/c",
     "a\n", "a/", "x" * 121, "~", "ä"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(location: Location, name: str) -> None:
    for verb in (location.read, location.map, location.size, location.exists):
        with pytest.raises(CorruptCache, match="not a file name that a cache may hold"):
            verb(name)
    for write in (location.create, location.replace):
        with pytest.raises(CorruptCache, match="not a file name that a cache may hold"):
            write(name, b"x")


def test_a_whole_round_in_memory(
    make_cache: Callable[..., dict[str, Any]], sealed: Path, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path}/cache"
    report = make_cache(url, chat_rows(9))
    cache = cachekd.open_cache(url)
    assert len(cache) == 9 and cache.root == report["root"]
    assert verify(url).problems == () and verify(url).records == 9
    on_disk = cachekd.open_cache(str(sealed))
    for record in cache:
        other = on_disk.get(record.input_ids).logits
        assert np.array_equal(record.logits.logprobs, other.logprobs)
    more = make_cache(url, chat_rows(11))
    assert more["documents_to_score"] == 2 and len(cachekd.open_cache(url)) == 11


def test_the_hub_is_not_written_to() -> None:
    with pytest.raises(ConfigError, match=r"no exclusive create; build the cache in a local fold"):
        Location("hf://datasets/someone/something").check_writable()


def test_a_filesystem_whose_name_has_file_in_it_is_not_local(tmp_path: Path) -> None:
    assert Location(str(tmp_path)).local and Location(f"file://{tmp_path}").local
    assert not Location(f"filecache::file://{tmp_path}").local


def test_an_unknown_protocol_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="not a location that can be opened"):
        Location("nowhere://x")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        if any(not parent.stat().st_mode & 0o001 for parent in Path(name).parents):
            pytest.skip(f"another user may not look into the temporary folder {name}")
        yield Path(name)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("below", ["", "/new", "/new/deeper"])
def test_a_folder_that_may_not_be_written_is_found(
    open_folder: Path, mode: int, below: str
) -> None:
    folder = open_folder / "folder"
    folder.mkdir()
    folder.chmod(mode)
    try:
        with ordinary_user(), pytest.raises(StoreError, match=r"cannot write to .*write access"):
            Location(f"{folder}{below}").check_writable()
    finally:
        folder.chmod(0o755)
    Location(f"{folder}{below}").check_writable()
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="choose a cache location"):
        Location(str(tmp_path / "file")).check_writable()
    with pytest.raises(StoreError, match="cannot write"):
        Location(str(tmp_path / "file")).create("a", b"x")


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = Location(str(tmp_path / "a" / "b")).free_bytes()
    assert free is not None and free > 0
    assert Location("memory://x").free_bytes() is None


def test_temporary_names_cannot_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    link = disk.link
    monkeypatch.setattr(
        disk, "link", lambda old, new, folder: (names.append(old), link(old, new, folder))
    )
    for i in range(3):
        Location(str(tmp_path)).create(f"a{i}", b"x")
    assert len({name[-32:] for name in names}) == 3
    assert all(name.startswith(local.TEMPORARY) for name in names)
