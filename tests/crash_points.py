"""Every fault point of a small capture: ``python tests/crash_points.py kill`` and other modes.

Prints one JSON object with counts; ends with an AssertionError at the first case that is wrong.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path

from crashes import (
    CHANGES,
    Workload,
    bench,
    check_partial,
    check_whole,
    ended,
    failing_at,
    forked,
    killed_at,
    progress,
    report,
    start,
    tripped,
)

ROWS = 12


def resumed(workload: Workload, cache: Path, truth: dict[str, str], what: str) -> None:
    again = forked(lambda: workload.run(cache))
    assert again.code == 0, (what, again)
    try:
        check_whole(cache, truth)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    shutil.rmtree(cache)


def kills(
    root: Path, workload: Workload, truth: dict[str, str], last: int, step: int, torn: bool
) -> int:
    """A kill before every change, or in the midst of every write."""
    done = 0
    for number in range(1, last + 1, step):
        cache = root / f"{'torn' if torn else 'kill'}-{number}"
        dead = forked(tripped(workload, cache, killed_at(number, torn=torn)))
        assert dead.code == -signal.SIGKILL, dead
        check_partial(cache)
        resumed(workload, cache, truth, f"killed at {number}, torn {torn}")
        done += 1
    return done


def two(root: Path, workload: Workload, truth: dict[str, str], last: int, step: int) -> int:
    """One of two processes is killed before every change; the other ends the work alone."""
    done = 0
    for number in range(1, last + 1, step):
        cache = root / f"two-{number}"
        first = start(tripped(workload, cache, killed_at(number)))
        second = start(lambda cache=cache: workload.run(cache))
        left, right = ended(*first), ended(*second)
        assert left.code in (0, -signal.SIGKILL) and right.code == 0, (number, left, right)
        check_partial(cache)
        resumed(workload, cache, truth, f"one of two killed at {number}")
        done += left.code != 0
    return done


def double(root: Path, workload: Workload, truth: dict[str, str], last: int, times: int) -> int:
    """Killed at random, and the run that continues is killed at random too."""
    draw, done = random.Random(5), 0
    for number in range(times):
        cache = root / f"double-{number}"
        at = draw.randint(1, last), draw.randint(1, last)
        dead = [forked(tripped(workload, cache, killed_at(n))) for n in at]
        assert dead[0].code == -signal.SIGKILL and dead[1].code in (0, -signal.SIGKILL), (at, dead)
        check_partial(cache)
        resumed(workload, cache, truth, f"killed at {at}")
        done += sum(one.code != 0 for one in dead)
    return done


def fails(root: Path, workload: Workload, truth: dict[str, str], step: int) -> dict[str, int]:
    """A full disk where anything is written, an error of the device wherever there can be one."""
    calm = forked(tripped(workload, root / "count", lambda *_: None))
    counts: Counter[str] = Counter()
    full = ("make_folder", "open_new", "write", "link", "rename", "open_lock")
    for number, name in list(enumerate(calm.changes, 1))[::step]:
        codes = [errno.EIO] + [errno.ENOSPC, errno.EDQUOT] * (name in full)
        for code in codes:
            cache = root / f"fail-{number}-{code}"
            ill = forked(tripped(workload, cache, failing_at(number, code)))
            what = f"{errno.errorcode[code]} at {name} {number}"
            if name == "remove_folder":  # an empty root may stay
                assert ill.code == 0, (what, ill)
                resumed(workload, cache, truth, what)
                continue
            assert ill.code == 1, (what, ill)
            kind, _, message = ill.error.partition(": ")
            assert kind == "StoreError" and str(root) in message, (what, ill)
            assert os.strerror(code) in message, (what, ill)
            if code != errno.EIO and name in ("write", "link"):
                assert " bytes)" in message and "free space" in message, (what, ill)
            if name != "unlink" and cache.exists():
                left = [path for path in cache.rglob(".tmp-*")]
                assert not left, (what, left)
            check_partial(cache)
            resumed(workload, cache, truth, what)
            counts[f"{errno.errorcode[code]} {name}"] += 1
    return dict(counts)


def limited(root: Path, workload: Workload, truth: dict[str, str]) -> dict[str, int]:
    """The system's own limit on the size of a file, from a few bytes to enough."""
    counts: Counter[str] = Counter()
    for size in (100, 600, 1000, 2000, 3000, 4000, 8000, 1 << 20):
        cache = root / f"limit-{size}"

        def run(size: int = size, cache: Path = cache) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            workload.run(cache)

        ill = forked(run)
        assert ill.code in (0, 1) and ("File too large" in ill.error) == bool(ill.code), (size, ill)
        counts["refused" if ill.code else "enough"] += 1
        check_partial(cache)
        resumed(workload, cache, truth, f"files limited to {size} bytes")
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["kill", "torn", "two", "double", "fail", "limit"])
    parser.add_argument("--step", type=int, default=1, help="every so many changes")
    parser.add_argument("--times", type=int, default=20, help="double: how often")
    args = parser.parse_args()
    with bench(ROWS) as (root, workload, truth, last):
        progress(f"{last} changes of the disk, of {len(CHANGES)} kinds")
        if args.mode in ("kill", "torn"):
            done: object = kills(root, workload, truth, last, args.step, args.mode == "torn")
        elif args.mode == "two":
            done = two(root, workload, truth, last, args.step)
        elif args.mode == "double":
            done = double(root, workload, truth, last, args.times)
        elif args.mode == "limit":
            done = limited(root, workload, truth)
        else:
            done = fails(root, workload, truth, args.step)
        report(changes=last, files=len(truth), done=done)


if __name__ == "__main__":
    main()
