"""What a disk may hold after the power went: all legal states of a log of operations.

``python tests/powerloss.py [--no-sync] [--resume N]`` runs a small capture, logs every change of
the disk, and builds, for every prefix of the log, the states that a filesystem may come back with:
what was synced is there; of the rest each change may have reached the disk or not, and bytes that
were not synced may be absent, cut, or zeros. In no state may a commit record or a seal name a file
that is missing or has other bytes. ``--no-sync`` forgets all syncs: then the check must fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crashes import Workload, check_partial, check_whole, contents, forked, make_workload, report

from cachekd.errors import CachekdError
from cachekd.store import disk
from cachekd.store.reader import open_cache
from cachekd.store.verify import verify

Change = tuple[str, str, int | None]  # "add" or "remove", a path, what it is a name of


@dataclass(frozen=True, slots=True)
class Disk:
    """Names and bytes that are sure, and changes of names that are not.

    Attributes:
        names: what is on the disk for sure, by path: an inode, or None for a folder.
        pending: changes of names since their folder was synced, in order.
        data: bytes of each inode that are on the disk for sure.
        written: bytes of each inode as the running system sees them.
    """

    names: dict[str, int | None] = field(default_factory=dict)
    pending: tuple[Change, ...] = ()
    data: dict[int, bytes] = field(default_factory=dict)
    written: dict[int, bytes] = field(default_factory=dict)


class Recorder:
    """Logs what a run does below a root, as `Disk` states after each change.

    Args:
        root: nothing outside is looked at; it must be there.
        syncs: False forgets all syncs.
    """

    def __init__(self, root: Path, *, syncs: bool) -> None:
        self.root, self._syncs = root, syncs
        self.states = [Disk()]
        self._now: dict[str, int | None] = {}
        self._files: dict[int, int] = {}
        self._folders: dict[int, str] = {}
        self._inodes = 0
        for name in disk.OPERATIONS:
            if hasattr(self, f"_{name}"):
                setattr(disk, name, self._wrap(getattr(disk, name), getattr(self, f"_{name}")))

    def _wrap(self, whole: Any, note: Any) -> Any:
        def step(*args: Any) -> Any:
            found = whole(*args)
            note(found, *args)
            return found

        return step

    def _push(self, **changed: Any) -> None:
        self.states.append(replace(self.states[-1], **changed))

    def _path(self, name: str, folder: int | None) -> str:
        place = name if folder is None else os.path.join(self._folders[folder], name)
        return os.path.normpath(place)

    def _change(self, *changes: Change) -> None:
        for verb, path, inode in changes:
            if verb == "add":
                self._now[path] = inode
            else:
                del self._now[path]
        inside = tuple(c for c in changes if Path(c[1]).is_relative_to(self.root))
        self._push(pending=self.states[-1].pending + inside)

    def _open_folder(self, opened: int, name: str, folder: int | None = None) -> None:
        self._folders[opened] = self._path(name, folder)

    def _make_folder(self, _: None, name: str, folder: int | None = None) -> None:
        self._change(("add", self._path(name, folder), None))

    def _open_new(self, opened: int, name: str, folder: int) -> None:
        self._inodes += 1
        self._files[opened] = self._inodes
        self._push(written={**self.states[-1].written, self._inodes: b""})
        self._change(("add", self._path(name, folder), self._inodes))

    def _open_lock(self, opened: int, name: str, folder: int) -> None:
        if self._path(name, folder) not in self._now:
            self._open_new(opened, name, folder)

    def _write(self, count: int, file: int, data: memoryview) -> None:
        inode, written = self._files[file], self.states[-1].written
        self._push(written={**written, inode: written[inode] + bytes(data[:count])})

    def _sync(self, _: None, file: int) -> None:
        if not self._syncs:
            return
        last = self.states[-1]
        if file in self._files:
            inode = self._files[file]
            self._push(data={**last.data, inode: last.written[inode]})
            return
        here = self._folders[file]
        own = [c for c in last.pending if os.path.dirname(c[1]) == here]
        left = tuple(c for c in last.pending if os.path.dirname(c[1]) != here)
        self._push(names=applied(last.names, own), pending=left)

    def _close(self, _: None, file: int) -> None:
        self._files.pop(file, None)
        self._folders.pop(file, None)

    def _link(self, _: None, old: str, new: str, folder: int) -> None:
        self._change(("add", self._path(new, folder), self._now[self._path(old, folder)]))

    def _rename(self, _: None, old: str, new: str, folder: int) -> None:
        # One change of two names, which a filesystem makes whole or not at all.
        inode = self._now[self._path(old, folder)]
        self._change(
            ("add", self._path(new, folder), inode), ("remove", self._path(old, folder), None)
        )

    def _unlink(self, _: None, name: str, folder: int) -> None:
        path = self._path(name, folder)
        if path in self._now:
            self._change(("remove", path, None))


def applied(names: dict[str, int | None], changes: list[Change]) -> dict[str, int | None]:
    """Names after some changes."""
    names = dict(names)
    for verb, path, inode in changes:
        if verb == "add":
            names[path] = inode
        else:
            names.pop(path, None)
    return names


State = dict[str, bytes | None]


def crashed(state: Disk) -> Iterator[State]:
    """Legal contents of the disk when the power goes now."""
    pending = list(state.pending)
    chosen = [[], pending]
    chosen += [[one] for one in pending]
    chosen += [pending[:i] + pending[i + 1 :] for i in range(len(pending))]
    chosen += [pending[:i] for i in range(1, len(pending))]
    for changes in chosen:
        names = applied(state.names, changes)
        for keep in _TORN:
            yield {
                path: None if inode is None else _bytes(state, inode, keep)
                for path, inode in names.items()
                if _reached(path, names)
            }


def _reached(path: str, names: dict[str, int | None]) -> bool:
    """Whether all folders above it, below the root, are there."""
    above = os.path.dirname(path)
    return above not in KNOWN_FOLDERS or (above in names and _reached(above, names))


KNOWN_FOLDERS: set[str] = set()


def _bytes(state: Disk, inode: int, keep: Callable[[bytes], bytes]) -> bytes:
    sure, written = state.data.get(inode, b""), state.written[inode]
    return written if sure == written else keep(written)


def _without(written: bytes, block: int) -> bytes:
    """Bytes of which one eighth was not written, so that zeros are there."""
    size = -(-len(written) // 8)
    start, end = block * size, min(len(written), (block + 1) * size)
    return written[:start] + bytes(max(0, end - start)) + written[end:]


# What may be there of bytes that were not synced: any part of them, and zeros for the rest.
_TORN: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    lambda written: bytes(len(written)),
    *(lambda written, i=i: written[: i * len(written) // 8] for i in range(8)),
    *(lambda written, i=i: _without(written, i) for i in range(8)),
)


def build(state: State, root: Path, place: Path) -> None:
    """Put a state into a folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path, data in sorted(state.items()):
        found = place / Path(path).relative_to(root)
        if data is None:
            found.mkdir(parents=True, exist_ok=True)
        else:
            found.parent.mkdir(parents=True, exist_ok=True)
            found.write_bytes(data)


_ENOUGH = 20  # wrong states that show what a forgotten sync does


def check(cache: Path) -> None:
    """Nothing that was committed is lost or wrong; a seal, if there is one, is clean."""
    check_partial(cache)
    if list(cache.glob("manifest-*.json")):
        problems = verify(str(cache)).problems
        assert not problems, problems
        assert len(open_cache(str(cache))) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-sync", action="store_true")
    parser.add_argument("--resume", type=int, default=12, help="resume from one state of so many")
    parser.add_argument("--rows", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        workload = make_workload(root, args.rows)
        workload.run(root / "calm")
        truth = contents(root / "calm")
        (root / "disk").mkdir()
        report(**_states(workload, root, truth, syncs=not args.no_sync, resume=args.resume))


def _states(
    workload: Workload, root: Path, truth: dict[str, str], *, syncs: bool, resume: int
) -> dict[str, int]:
    whole = {name: getattr(disk, name) for name in disk.OPERATIONS}
    recorder = Recorder(root / "disk", syncs=syncs)
    workload.run(root / "disk" / "cache")
    for name, function in whole.items():
        setattr(disk, name, function)
    changes = (c for state in recorder.states for c in state.pending)
    KNOWN_FOLDERS.update(path for verb, path, inode in changes if verb == "add" and inode is None)
    seen: dict[int, None] = {}
    bad = resumed = 0
    for at in recorder.states:
        for state in crashed(at):
            key = hash(tuple(sorted(state.items(), key=lambda item: item[0])))
            if key in seen:
                continue
            seen[key] = None
            build(state, recorder.root, root / "after")
            try:
                check(root / "after" / "cache")
            except (AssertionError, CachekdError):
                bad += 1
                if syncs:
                    raise
                if bad == _ENOUGH:
                    return {"states": len(seen), "bad": bad}
                continue
            if syncs and len(seen) % resume == 0:
                again = forked(lambda: workload.run(root / "after" / "cache"))
                assert again.code == 0, again
                check_whole(root / "after" / "cache", truth)
                resumed += 1
    return {"changes": len(recorder.states), "states": len(seen), "bad": bad, "resumed": resumed}


if __name__ == "__main__":
    main()
