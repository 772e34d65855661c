"""Memory and time of what looks at a whole cache, as its records and its shards grow.

Two series: records in shards of a thousand, and shards of one record. Each figure is of a process
of its own, which has done the same on a small cache first, so that imports do not count; medians
of the repeats. Processor time is beside wall time: other work on the machine hardly changes it.
Memory is the peak above what the process held before: of anonymous pages (see `bench_scaling`), and
of all resident ones, in which the mapped pages of files count.

Stages: ``manifest`` reads the newest seal; ``open_sealed`` and ``open_partial`` are `open_cache`;
``resume_scan`` is what precompute finds out about committed units, ``scan_file_by_file`` the same
as it is told in one line: each record read, each file of it looked for, by its whole name; ``seal``
writes a first seal; ``verify`` reads and decodes everything. A stage grows as ``n ** exponent``
(fit over the last two sizes): 0 is flat, 1 linear.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench_scaling import measured
from common import forget_peak, in_child, median, resident, save
from store_caches import write_cache

import cachekd
from cachekd.store.io import Location
from cachekd.store.layout import HINT, manifest_name
from cachekd.store.manifest import generations, read_manifest
from cachekd.store.seal import seal
from cachekd.store.shards import Shard
from cachekd.store.state import load_unit, read_state
from cachekd.store.verify import verify

WARM = 500
SEALED_SHARDS = 10_000
UNSEALED = ("open_partial", "resume_scan", "scan_file_by_file")
ENOUGH_SECONDS = 20
FLAT, LINEAR = 0.25, 1.15


def scan_file_by_file(location: Location) -> int:
    """Whole units, each looked at by itself."""
    names = [f"units/{name}" for name in location.names("units")]
    records = [load_unit(name, location.read(name)) for name in names]
    return sum(all(map(location.exists, record.files())) for record in records)


def resume_scan(location: Location) -> int:
    return len(read_state(location, skip_broken_units=True).units)


def verify_all(location: Location) -> dict[str, float]:
    """Verify, and how much of its processor time went to decoding and checking records."""
    spent, check = [0.0], Shard.check_record

    def timed(self: Shard, row: int) -> tuple[int, int]:
        started = time.perf_counter()
        found = check(self, row)
        spent[0] += time.perf_counter() - started
        return found

    started = time.perf_counter()
    with patch.object(Shard, "check_record", timed):
        report = verify(location.url)
    assert not report.problems and report.records, report.problems
    return {"share_of_decode": round(spent[0] / (time.perf_counter() - started), 3)}


STAGES: dict[str, Callable[[Location], Any]] = {
    "seal": seal,
    "manifest": read_manifest,
    "open_sealed": lambda location: cachekd.open_cache(location.url),
    "open_partial": lambda location: cachekd.open_cache(location.url, partial=True),
    "resume_scan": resume_scan,
    "scan_file_by_file": scan_file_by_file,
    "verify": verify_all,
}


def unseal(location: Location) -> None:
    """Take the seals away."""
    for name in [HINT, *map(manifest_name, generations(location))]:
        location.remove(name)


def stage(name: str, small: Path, large: Path) -> dict[str, Any]:
    """One figure, in this process."""
    locations = Location(str(small)), Location(str(large))
    if name == "seal":
        for location in locations:
            unseal(location)
    STAGES[name](locations[0])
    row: dict[str, Any] = {}
    forget_peak()
    before, processor = resident("VmRSS"), time.process_time()
    with measured(row, "stage"):
        result = STAGES[name](locations[1])
    row["cpu_seconds"] = time.process_time() - processor
    row["peak_rss_growth_bytes"] = resident("VmHWM") - before
    return row | (result if isinstance(result, dict) else {})


def measure(folder: Path, small: Path, name: str, repeats: int) -> dict[str, Any]:
    """Medians of a stage over processes of its own; what is slow is not repeated as often."""
    started, runs = time.perf_counter(), list[dict[str, Any]]()
    while len(runs) < repeats and time.perf_counter() - started < ENOUGH_SECONDS:
        runs.append(in_child(stage, name, small, folder))
    named = {
        "seconds": "stage_seconds",
        "cpu_seconds": "cpu_seconds",
        "peak_growth_bytes": "stage_growth_bytes",
        "peak_rss_growth_bytes": "peak_rss_growth_bytes",
        "share_of_decode": "share_of_decode",
    }
    medians = {
        key: median([run[field] for run in runs])
        for key, field in named.items()
        if field in runs[0]
    }
    return {"runs": len(runs), **medians}


def sizes(records: list[int], shards: list[int]) -> list[dict[str, Any]]:
    """Sizes of both series; the shards of the second hold one record."""
    by_records: list[dict[str, Any]] = [
        {"records": count, "rows": min(count, 1000)} for count in records
    ]
    return by_records + [{"records": count, "rows": 1} for count in shards]


def made(base: Path, records: int, rows: int) -> Path:
    """A cache of this size, made if it is not there."""
    folder = base / f"{records}-{rows}"
    if not folder.exists():
        in_child(write_cache, folder, records, rows)
    return folder


def looked_at(name: str, row: dict[str, Any], verified: int) -> bool:
    """Whether a size is small enough for a stage to be repeated."""
    shards = row["records"] / row["rows"]
    if name == "verify":
        return bool(row["records"] <= verified)
    return name in UNSEALED or bool(shards <= SEALED_SHARDS)


def grows(rows: list[dict[str, Any]], name: str, field: str) -> dict[str, Any]:
    """How a figure of a stage grows from the last size but one to the last."""
    known = sorted(
        (row for row in rows if name in row.get("stages", ())), key=lambda row: int(row["records"])
    )
    if len(known) < 2:
        return {}
    (first, small), (last, large) = (
        (row["records"], max(row["stages"][name][field], 1e-9)) for row in known[-2:]
    )
    exponent = math.log(large / small) / math.log(last / first)
    word = "flat" if exponent < FLAT else "linear" if exponent <= LINEAR else "more than linear"
    return {"exponent": round(exponent, 2), "is": word, "each": float(f"{large / last:.3g}")}


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth of time and memory of every stage, in each series."""
    fields = ("cpu_seconds", "peak_growth_bytes")
    return {
        series: {name: {field: grows(own, name, field) for field in fields} for name in STAGES}
        for series, own in {
            "records_in_shards_of_1000": [row for row in rows if row["rows"] > 1],
            "shards_of_one_record": [row for row in rows if row["rows"] == 1],
        }.items()
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each size: the scan file by file over that of precompute, in processor time."""
    pairs = [
        (row, row["stages"]["scan_file_by_file"], row["stages"]["resume_scan"]) for row in rows
    ]
    return [
        {
            "units": -(-row["records"] // row["rows"]),
            "ratio": round(slow["cpu_seconds"] / fast["cpu_seconds"], 2),
        }
        for row, slow, fast in pairs
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All that is saved."""
    return {
        "sizes": rows,
        "growth": growth(rows),
        "scan_file_by_file_over_resume_scan": compared(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="*", default=[1000, 10_000, 100_000, 10**6])
    parser.add_argument("--shards", type=int, nargs="*", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--verify-at-most", type=int, default=100_000, help="records")
    parser.add_argument("--caches", type=Path, help="keep caches here, and use those that are here")
    parser.add_argument("--quick", action="store_true", help="small, once; saves nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.records, arguments.shards, arguments.repeats = [200, 400], [20, 40], 1
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.caches or temporary
        small = made(Path(base), WARM, 100)
        for row in sizes(arguments.records, arguments.shards):
            folder = made(Path(base), row["records"], row["rows"])
            names = [name for name in STAGES if looked_at(name, row, arguments.verify_at_most)]
            row["stages"] = {
                name: measure(folder, small, name, arguments.repeats) for name in names
            }
            done.append(row)
            # After each size: what is measured stays if the next is stopped.
            save("store_scale", summary(done), keep=not arguments.quick)
            if not arguments.caches:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
