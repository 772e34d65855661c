"""The same faults for this project's store and for the writers of two others, counted side by side.

DistillKit (`StreamingParquetWriter`, the writer of its capture) and mosaicml/streaming (`MDSWriter`
and `StreamingDataset`, as it is and with hashes written and validated) run from where their sources
are unpacked. Faults: SIGKILL at random moments and the same command again; one bit flipped, or the
end cut off, in a file of rows, then read twice; files that may not grow, a full disk; two writers
at one place; an index whose file name leads out of the folder; and what is synced before it is
published (needs ``strace``). Trials are equal for all.

What this does not show: the others do things that this project does not. streaming downloads from
any cloud, evicts what it does not need, holds samples of any kind and starts again within an epoch
on other numbers of nodes; both write without waiting for the disk, see ``undisturbed`` (where the
time of this project also holds its teacher's). DistillKit's files are salvaged one by one here,
which its own loading of a folder does not do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from common import save
from opponents_players import Player, cachekd_player, distillkit_player, streaming_players
from opponents_trials import (
    Arena,
    cut,
    damaged,
    disk_full,
    flipped,
    killed,
    pace,
    too_large,
    two_writers,
)

from cachekd.store.layout import dump_document, manifest_name

_CALLS = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat"
_PUBLISH, _SYNC = re.compile(r"\b(link|rename)(at|at2)?\("), re.compile(r"\bf(data)?sync\(")


def redirected(folder: Path, name: str) -> bool:
    """Let the index of a folder name this file for its first shard; False if it has no index."""
    index, seal = folder / "index.json", folder / manifest_name(1)
    if index.exists():
        content = json.loads(index.read_text())
        content["shards"][0]["raw_data"]["basename"] = name
        index.write_text(json.dumps(content))
    elif seal.exists():
        content = json.loads(seal.read_text())
        content["kinds"]["logits"]["shards"][0]["digest"] = name
        bare = {key: content[key] for key in content.keys() - {"format", "version", "checksum"}}
        seal.write_bytes(dump_document("manifest", bare))
    else:
        return False
    return True


def hostile(arena: Arena) -> dict[str, Any]:
    """An index that names a shard outside: read, or copied to another place outside?"""
    count = {"trials": 0, "refused": 0, "read": 0, "written_outside": 0}
    outside = arena.base / "hostile" / "pwned"
    for name in ("../../pwned", "./../../pwned", f"../{arena.base.name}/../../pwned", str(outside)):
        shutil.rmtree(outside.parent, ignore_errors=True)
        folder, own = outside.parent / "a" / "cache", outside.parent / "b" / "c" / "own"
        shutil.copytree(arena.reference, folder)
        own.mkdir(parents=True)
        shutil.copy(arena.player.files(folder)[0], outside)
        if not redirected(folder, name):
            return {"no_index": True}
        before = {path for path in outside.parent.rglob("*") if not path.is_relative_to(own)}
        outcome = arena.read(folder, own)
        after = {path for path in outside.parent.rglob("*") if not path.is_relative_to(own)}
        count["trials"] += 1
        count["read" if outcome.ending == "done" else "refused"] += 1
        count["written_outside"] += bool(after - before)
    return count


def synced(arena: Arena, play: list[str]) -> dict[str, Any]:
    """Calls that wait for the disk, and that publish a name, of one undisturbed run."""
    folder, log = arena.fresh(), arena.base / "calls"
    command = ["strace", "-f", "-y", "-e", _CALLS, "-o", str(log), sys.executable, __file__, *play]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [*command, "--play", arena.player.name, str(folder)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = [line for line in log.read_text().splitlines() if str(folder) in line]
    after_sync, fresh = 0, False
    for line in lines:
        if _SYNC.search(line):
            fresh = True
        elif _PUBLISH.search(line):
            after_sync, fresh = after_sync + fresh, False
    return {
        "data_files": len(arena.player.files(folder)),
        "syncs": sum(bool(_SYNC.search(line)) for line in lines),
        "published_by_link_or_rename": sum(bool(_PUBLISH.search(line)) for line in lines),
        "published_after_a_sync": after_sync,
    }


def faults(trials: int, play: list[str]) -> dict[str, Callable[[Arena], dict[str, Any]]]:
    """What is done to every player; the slow ones a tenth as often."""
    few = max(2, trials // 10)
    named: dict[str, Callable[[Arena], dict[str, Any]]] = {
        "undisturbed": partial(pace, trials=few),
        "killed": partial(killed, trials=trials),
        "bit_flipped": partial(damaged, trials=2 * trials, harm=flipped),
        "cut_off": partial(damaged, trials=trials, harm=cut),
        "file_may_not_grow": partial(too_large, trials=2 * few),
        "two_writers": partial(two_writers, trials=2 * few),
        "hostile_path": hostile,
    }
    if os.geteuid() == 0:
        named["disk_full"] = partial(disk_full, trials=2 * few)
    if shutil.which("strace"):
        named["order_of_syncs"] = partial(synced, play=play)
    return named


def players(arguments: argparse.Namespace, base: Path) -> list[Player]:
    """All that take part."""
    rows = arguments.rows
    return [
        cachekd_player(base, rows),
        distillkit_player(arguments.distillkit, rows),
        *streaming_players(arguments.streaming, rows),
    ]


def measure(arguments: argparse.Namespace, play: list[str]) -> dict[str, Any]:
    """Counts by fault, then by player."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as base:
        arenas = [
            Arena(player, Path(base), arguments.rows, Random(arguments.seed))
            for player in players(arguments, Path(base))
        ]
        for name, fault in faults(arguments.trials, play).items():
            table[name] = {}
            for arena in arenas:
                table[name][arena.player.name] = fault(arena)
                print(
                    name,
                    arena.player.name,
                    table[name][arena.player.name],
                    file=sys.stderr,
                    flush=True,
                )
        settings = {arena.player.name: arena.player.settings for arena in arenas}
    return {"settings": settings, "faults": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distillkit", type=Path, required=True, help="its unpacked sources")
    parser.add_argument("--streaming", type=Path, required=True, help="its unpacked sources")
    parser.add_argument("--commits", nargs=2, default=["unknown", "unknown"], help="of the two")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--play", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sources = ["--distillkit", str(arguments.distillkit), "--streaming", str(arguments.streaming)]
    play = [*sources, "--rows", str(arguments.rows)]
    if arguments.play:
        name, folder = arguments.play
        with tempfile.TemporaryDirectory() as base:
            (player,) = (one for one in players(arguments, Path(base)) if one.name == name)
            player.write(Path(folder), 0, arguments.rows)
        return
    result = measure(arguments, play)
    commits = dict(zip(("distillkit", "streaming"), arguments.commits, strict=True))
    save("opponents_faults", {"rows": arguments.rows, "commits": commits, **result})


if __name__ == "__main__":
    main()
