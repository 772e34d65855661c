"""Fuzz the parsers of a cache: so many changed files, or so many seconds each with atheris.

The targets are those of the tests (`tests/fuzzed.py`). What is found is written to
``tests/hostile/corpus/<target>/``, where the tests try it from then on.

    python benchmarks/fuzz_parsers.py --files 20000
    pip install atheris && python benchmarks/fuzz_parsers.py --atheris --target plan --seconds 3600
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import save

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fuzzed import Target, survives, targets  # noqa: E402

CORPUS = ROOT / "tests" / "hostile" / "corpus"
HANG_SECONDS = 5.0


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="changed files a target")
    parser.add_argument("--target", choices=sorted(targets()), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; one target")
    parser.add_argument("--seconds", type=int, default=60, help="how long atheris runs")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    chosen = {args.target: targets()[args.target]} if args.target else targets()
    if args.atheris:
        _atheris(args.target or "plan", args.seconds)
        return
    found = {name: _fuzz(name, target, args.files, args.seed) for name, target in chosen.items()}
    save("fuzz_parsers", {"targets": found, "seed": args.seed}, keep=not args.no_save)
    sys.exit(1 if any(result["findings"] for result in found.values()) else 0)


def _fuzz(name: str, target: Target, files: int, seed: int) -> dict[str, Any]:
    draw = random.Random(f"{seed} {name}")
    accepted, findings, slowest = 0, [], 0.0
    for _ in range(files):
        data = _changed(draw, draw.choice(target.seeds))
        started = time.monotonic()
        took, problem = _try(lambda data=data: survives(target, data))
        seconds = time.monotonic() - started
        slowest, accepted = max(slowest, seconds), accepted + took
        if problem or seconds > HANG_SECONDS:
            findings.append(problem or f"took {seconds:.1f} s")
            _keep(name, data)
    return {
        "files": files,
        "accepted": accepted,
        "findings": findings,
        "slowest_seconds": round(slowest, 3),
    }


def _try(run: Callable[[], bool]) -> tuple[bool, str]:
    try:
        return run(), ""
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"[:200]


def _changed(draw: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, cut out, put in twice, or set to what numbers end in."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, width = draw.randrange(len(changed) + 1), draw.choice((1, 1, 2, 4, 8, 16))
        part = slice(at, at + width)
        kind = draw.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[part]
        elif kind == 2:
            changed[at:at] = changed[part] * draw.randint(1, 3)
        elif kind == 3:
            changed[part] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"9", b"[")) * width
        else:
            changed[part] = draw.randbytes(width)
    return bytes(changed)


def _keep(name: str, data: bytes) -> None:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _atheris(name: str, seconds: int) -> None:
    """Run one target under atheris; a crash leaves its input in the corpus."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    target = targets()[name]
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        if _try(lambda: survives(target, data))[1]:
            _keep(name, data)
            survives(target, data)

    atheris.instrument_all()
    options = [f"-max_total_time={seconds}", f"-timeout={HANG_SECONDS:.0f}", str(folder)]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
