"""The faults that `opponents_faults` injects: one function a fault, the same for every player.

Comes in: a player, a folder to work in, how many trials, a random generator. Goes out: counts.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from common import median
from forks import Child, Outcome, in_fork
from opponents_players import Player

from cachekd.data.digests import bytes_digest

HANG_SECONDS = 10
_PATIENCE = 120  # for what nothing disturbs, on a busy machine


class Arena:
    """A player, its undisturbed run, and room for trials.

    Attributes:
        seconds, window: what an undisturbed run takes, and that part from its first file on.
        whole: digests of all rows, in the order they are read in.
        reference: where the undisturbed run is.
    """

    def __init__(self, player: Player, base: Path, rows: int, random: Random) -> None:
        self.player, self.rows, self.random = player, rows, random
        self.base = base / player.name.replace(", ", "-")
        self.reference = self.base / "reference"
        self.base.mkdir()
        # Here, not in a fork: what is imported at the first call is imported once.
        player.write(self.base / "warm", 0, rows // 10)
        player.read(self.base / "warm", self.own())
        started = time.perf_counter()
        child = self.started(self.reference)
        begun = time.perf_counter()
        self.expect_done(child.wait(_PATIENCE))
        self.seconds, self.window = (time.perf_counter() - at for at in (started, begun))
        self.whole: list[str] = self.expect_done(self.read(self.reference))
        assert len(set(self.whole)) == rows, "the undisturbed run is whole"

    def started(self, folder: Path) -> Child:
        """The whole run, begun: its first file is there."""
        child, began = Child(self.player.write, folder, 0, self.rows), time.perf_counter()
        while not (folder.exists() and any(folder.iterdir())):
            assert time.perf_counter() - began < _PATIENCE, f"{self.player.name} writes nothing"
            time.sleep(0.001)
        return child

    def expect_done(self, outcome: Outcome) -> Any:
        """What a child returned that nothing disturbed."""
        assert outcome.ending == "done", f"{self.player.name}: {outcome}"
        return outcome.value

    def fresh(self) -> Path:
        """A folder that is not there."""
        folder = self.base / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def own(self) -> Path:
        """An empty folder for the reader's own files."""
        folder = self.base / "own"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def read(self, folder: Path, own: Path | None = None) -> Outcome:
        """What the player's reader makes of a folder, in a process of its own."""
        return in_fork(self.player.read, folder, own or self.own())

    def bytes_of(self, folder: Path) -> dict[str, str]:
        """Digest of each data file."""
        files = self.player.files(folder)
        return {str(path.relative_to(folder)): bytes_digest(path.read_bytes()) for path in files}

    def judge(self, outcome: Outcome) -> dict[str, int]:
        """Rows lost, twice and wrong in what was read; an error counts as all lost."""
        found = Counter(outcome.value if outcome.ending == "done" else [])
        whole = set(self.whole)
        return {
            "lost": len(whole - found.keys()),
            "twice": sum(n - 1 for one, n in found.items() if one in whole),
            "wrong": sum(n for one, n in found.items() if one not in whole),
        }


def killed(arena: Arena, trials: int) -> dict[str, Any]:
    """SIGKILL at a random moment after the first file is there, and the same command again."""
    count: Counter[str] = Counter()
    while count["killed"] < trials:
        folder = arena.fresh()
        child = arena.started(folder)
        time.sleep(arena.random.uniform(0, arena.window))
        ending = child.kill().ending
        count[ending] += 1
        if ending != "killed":  # it was faster than before
            continue
        left = in_fork(arena.player.salvage, folder, arena.own())
        kept = arena.judge(left)
        count["rows_readable_after_kill"] += arena.rows - kept["lost"]
        count["nothing_readable_after_kill"] += kept["lost"] == arena.rows
        count["wrong_rows_after_kill"] += kept["wrong"]
        again = in_fork(arena.player.write, folder, 0, arena.rows)
        count[f"rerun_{again.ending}"] += 1
        for name, rows in arena.judge(arena.read(folder)).items():
            count[f"rows_{name}_after_rerun"] += rows
        same = arena.bytes_of(folder) == arena.bytes_of(arena.reference)
        count["bytes_as_undisturbed_after_rerun"] += same
    return {"trials": trials, "rows_of_all_trials": trials * arena.rows, **count}


def damaged(arena: Arena, trials: int, harm: Callable[[bytes, Random], bytes]) -> dict[str, Any]:
    """A data file harmed, read, and read again by a second start."""
    count: Counter[str] = Counter()
    files = arena.player.files(arena.reference)
    sizes = [path.stat().st_size for path in files]
    for _ in range(trials):
        (path,) = arena.random.choices(files, sizes)
        before, own = path.read_bytes(), arena.own()
        path.write_bytes(harm(before, arena.random))
        for start in ("first", "second"):
            count[f"{start}_start_{_verdict(arena, arena.read(arena.reference, own))}"] += 1
        path.write_bytes(before)
    return {"trials": trials, **count}


def _verdict(arena: Arena, outcome: Outcome) -> str:
    if outcome.ending != "done":
        return {"error": "found", "died": "crashed"}.get(outcome.ending, outcome.ending)
    return "harmless" if outcome.value == arena.whole else "silently_wrong"


def flipped(data: bytes, random: Random) -> bytes:
    """One bit is another."""
    harmed, place = bytearray(data), random.randrange(8 * len(data))
    harmed[place // 8] ^= 1 << place % 8
    return bytes(harmed)


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing."""
    return data[: random.randrange(len(data))]


def _limited(player: Player, folder: Path, rows: int, most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    player.write(folder, 0, rows)


def _ended(arena: Arena, count: Counter[str], outcome: Outcome, folder: Path) -> None:
    """Count an ending of a run that could not write all, and what a rerun makes of it."""
    name = outcome.ending
    if name == "done":
        lost = arena.judge(in_fork(arena.player.salvage, folder, arena.own()))["lost"]
        name = "silent_loss" if lost else "done_whole"
    count[name] += 1


def too_large(arena: Arena, trials: int) -> dict[str, Any]:
    """No file may grow beyond a random size (EFBIG at the write that would)."""
    count: Counter[str] = Counter()
    largest = max(path.stat().st_size for path in arena.player.files(arena.reference))
    for _ in range(trials):
        folder = arena.fresh()
        most = arena.random.randrange(1, largest)
        write = (_limited, arena.player, folder, arena.rows, most)
        _ended(arena, count, in_fork(*write, limit=HANG_SECONDS + 5 * arena.seconds), folder)
        again = in_fork(arena.player.write, folder, 0, arena.rows)
        lost = arena.judge(arena.read(folder))["lost"]
        count["rerun_whole"] += again.ending == "done" and not lost
    return {"trials": trials, **count}


def disk_full(arena: Arena, trials: int) -> dict[str, Any]:
    """A disk of a random size, too small for all (needs the right to mount)."""
    count: Counter[str] = Counter()
    whole = sum(path.stat().st_size for path in arena.player.files(arena.reference))
    disk = arena.base / "disk"
    disk.mkdir()
    for _ in range(trials):
        size = arena.random.randrange(8192, whole)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        subprocess.run(command, check=True)
        try:
            write = (arena.player.write, disk / "cache", 0, arena.rows)
            outcome = in_fork(*write, limit=HANG_SECONDS + 5 * arena.seconds)
            _ended(arena, count, outcome, disk / "cache")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    return {"trials": trials, **count}


def two_writers(arena: Arena, trials: int) -> dict[str, Any]:
    """Two processes write a half each into one place at once."""
    count: Counter[str] = Counter()
    half = arena.rows // 2
    for _ in range(trials):
        folder = arena.fresh()
        parts = ((0, half), (half, arena.rows))
        children = [Child(arena.player.write, folder, *part) for part in parts]
        endings = [child.wait(HANG_SECONDS + 10 * arena.seconds).ending for child in children]
        told = endings != ["done", "done"]
        judged = arena.judge(in_fork(arena.player.salvage, folder, arena.own()))
        count["a_writer_told_an_error"] += told
        count["rows_lost"] += judged["lost"]
        count["rows_wrong_or_twice"] += judged["wrong"] + judged["twice"]
        count["silent_loss"] += bool(judged["lost"]) and not told
    return {"trials": trials, **count}


def pace(arena: Arena, trials: int) -> dict[str, Any]:
    """Undisturbed: seconds of a run and of reading it, bytes a row."""
    write, read = [], []
    for _ in range(trials):
        started = time.perf_counter()
        arena.expect_done(in_fork(arena.player.write, arena.fresh(), 0, arena.rows))
        write.append(time.perf_counter() - started)
        started = time.perf_counter()
        arena.expect_done(arena.read(arena.reference))
        read.append(time.perf_counter() - started)
    held = sum(path.stat().st_size for path in arena.player.files(arena.reference))
    return {
        "write_seconds": median(write),
        "read_seconds": median(read),
        "bytes_a_row": round(held / arena.rows),
    }
