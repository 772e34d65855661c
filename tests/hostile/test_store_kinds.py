"""Links, pipes, sockets, devices and folders in the place of the files of a cache.

Every door that reads such a file refuses it, without waiting and without following it. Only a
second hard link to the same bytes is the file itself.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forged import DOORS, OF_SEAL, OF_STATE, forge, put, read_all
from runs import capture
from tiny import Family, chat_rows, write_rows

from cachekd.errors import CachekdError, CorruptCache, StoreError
from cachekd.store import temporary
from cachekd.store.generated import generated_files
from cachekd.store.io import Location
from cachekd.store.scores import ScoreStore

FILES = {
    "cache.json": (*OF_SEAL, *OF_STATE),
    "logits/capture.json": (*OF_SEAL, *OF_STATE),
    "manifest-1.json": OF_SEAL,
    "index/*": ("open", "verify"),
    "samples/*": (*OF_SEAL, *OF_STATE),
    "logits/*.parquet": ("open", "verify", "open-partial", "verify-partial", "merge"),
    "priors/*": ("open", "verify", "open-partial", "verify-partial", "merge"),
    "plans/*": ("verify", *OF_STATE),
    "units/*": ("verify", *OF_STATE),
}


def link_outside(path: Path) -> None:
    """A link to the right bytes, which lie outside."""
    outside = path.parents[2] / "right-bytes"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def link_inside(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    path.unlink()
    here = os.open(path.parent, os.O_RDONLY)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{here}/{path.name[:60]}")
    os.rename(path.with_name(path.name[:60]), path)
    os.close(here)


def device(path: Path) -> None:
    """The endless zeros themselves, or a link to them where nobody may make a device."""
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


KINDS = (link_outside, link_inside, dangling, pipe, a_socket, device, folder)


def doors_of(name: str, kind: Callable[[Path], None]) -> tuple[str, ...]:
    """Doors that read the file, if it is of this kind: a folder is not listed as a file."""
    listed = name.startswith(("manifest", "plans/", "units/"))
    if kind is folder and listed:
        return () if name.startswith("manifest") else ("verify",)
    return FILES[name]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_no_plain_file_is_refused(
    sealed: Path, tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    refused = 0
    for number, name in enumerate(FILES):
        cache = Path(shutil.copytree(sealed, tmp_path / str(number) / "cache"))
        kind(sorted(cache.glob(name))[0])
        for door in doors_of(name, kind):
            with pytest.raises(CorruptCache):
                DOORS[door](str(cache))
            refused += 1
    assert refused >= 20


@pytest.mark.parametrize("name", ["plans", "units", "samples", "logits", "priors", "index"])
def test_a_linked_folder_is_refused(cache: Path, name: str) -> None:
    """Also one that leads to the right files."""
    (cache / name).rename(cache.parent / name)
    (cache / name).symlink_to(cache.parent / name)
    doors = {"plans": OF_STATE, "units": OF_STATE, "index": ("open", "verify")}
    for door in doors.get(name, ("open", "verify", "open-partial", "merge")):
        with pytest.raises(CorruptCache, match="links below a cache are not followed"):
            DOORS[door](str(cache))


def test_the_cache_itself_may_be_a_link(cache: Path, tmp_path: Path) -> None:
    """Its path is the user's own word, not that of a file."""
    (tmp_path / "link").symlink_to(cache)
    assert read_all(str(tmp_path / "link")) == read_all(str(cache))


def test_a_hard_link_with_the_right_bytes_is_the_file(cache: Path, tmp_path: Path) -> None:
    """Bytes are what counts: a second name of them cannot be told from a copy, and harms nobody."""
    truth = read_all(str(cache))
    for number, path in enumerate(sorted(path for path in cache.rglob("*") if path.is_file())):
        os.link(path, tmp_path / f"other-{number}")
    for name, door in DOORS.items():
        assert door(str(cache)) == truth, name
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"private")
    shard = sorted((cache / "logits").glob("*.parquet"))[0]
    shard.unlink()
    os.link(foreign, shard)
    with pytest.raises(CorruptCache, match=shard.name) as caught:
        read_all(str(cache))
    assert "private" not in str(caught.value) and foreign.read_bytes() == b"private"


def test_responses_of_an_interrupted_run(cache: Path) -> None:
    """Copied by merge: also there nothing is followed."""
    name = f"generated/{'0' * 32}-{'1' * 64}.parquet"
    put(cache / name, b"x")
    assert list(generated_files(Location(str(cache)))) == [name]
    for kind in (link_outside, pipe):
        kind(cache / name)
        with pytest.raises(CorruptCache, match="plain file"):
            DOORS["merge"](str(cache))
        (cache / name).unlink()
        put(cache / name, b"x")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [pipe, dangling, device, folder], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("part", ["logs/x.log", "segments/x.seg"])
def test_score_stores_wait_for_no_pipe(
    tmp_path: Path, kind: Callable[[Path], None], part: str
) -> None:
    path = tmp_path / "id" / part
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    kind(path)
    with pytest.raises(CorruptCache, match="plain file"):
        ScoreStore(str(tmp_path), "id", {"a": 1})


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_modes_follow_the_umask(family: Family, tmp_path: Path, mask: int) -> None:
    """Neither wider than it allows, nor narrower: a folder of a group stays one of the group."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(3))
    with umask(mask):
        capture(family, data, tmp_path / "cache", backend="dummy", batch_tokens=80)
    files = folders = 0
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        wide = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == wide & ~mask, path
        files, folders = files + path.is_file(), folders + path.is_dir()
    assert files >= 8 and folders >= 7


def test_a_group_works_in_one_folder(cache: Path) -> None:
    """A set-group-id folder gives its group to what is made in it, by whoever."""
    os.chmod(cache / "units", 0o2775)
    with umask(0o002):
        Location(str(cache)).create("units/x.json", b"x")
    found = (cache / "units" / "x.json").stat()
    assert found.st_gid == (cache / "units").stat().st_gid
    assert stat.S_IMODE(found.st_mode) == 0o664


def test_a_planted_temporary_name_is_not_written_to(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exclusive create: were a name guessed, a link that waits there would not be followed."""
    monkeypatch.setattr(temporary.secrets, "token_hex", lambda size: "0" * 2 * size)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    planted = f"{temporary.TEMPORARY}{temporary._host()}-{'0' * 32}"
    for make in (lambda path: path.symlink_to(victim), lambda path: os.link(victim, path)):
        make(cache / "units" / planted)
        with pytest.raises(StoreError, match="every temporary name is taken"):
            Location(str(cache)).create("units/y.json", b"x")
        assert victim.read_bytes() == b"mine" and not (cache / "units" / "y.json").exists()
        (cache / "units" / planted).unlink(missing_ok=True)


def test_a_link_in_the_place_of_a_card_or_hint_is_replaced_not_followed(
    cache: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for name in ("README.md", "manifest.json"):
        (cache / name).unlink()
        (cache / name).symlink_to(victim)
    forge(cache, plan=lambda d: d.update(threads=3))
    (cache / "manifest-1.json").unlink()
    DOORS["seal"](str(cache))
    assert victim.read_bytes() == b"mine"
    assert not any((cache / name).is_symlink() for name in ("README.md", "manifest.json"))


def test_a_door_that_was_given_no_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache.json").symlink_to("/dev/zero")
    for door in DOORS.values():
        with pytest.raises(CachekdError):
            door(str(tmp_path))
