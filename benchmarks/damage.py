"""Random damage to a small cache with every kind of file: what is found, what readers get.

python benchmarks/damage.py --flips 100000 --truncations 1000 --mutations 10000

A cache of two runs with attention, responses that the teacher wrote, and priors is damaged and
healed, file by file. Reads are those of a new reader (of shards: of a loader's worker). One flip in
``--verify-one-in`` is also verified, and read a second time by yet another reader; verify then
decodes the shards concerned alone. Mutations are of seals and commit records; one in
``--repair-one-in`` is repaired. Counts go by kind of file; ``wrong`` must not be among them. Hint
and card are trusted by nobody: they are read past, and not verified.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from common import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from document_mutations import Documents
from mutations import Patient, flips, make_cache, summary, swaps, truncations, zeros


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, size in (("flips", 100_000), ("truncations", 1000), ("mutations", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--verify-one-in", type=int, default=25)
    parser.add_argument("--repair-one-in", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pa.set_cpu_count(1)
    started = time.monotonic()
    seed, one_in = args.seed, args.verify_one_in
    with tempfile.TemporaryDirectory() as folder:
        patient = Patient(make_cache(Path(folder)))
        other = make_cache(Path(folder), first=100)
        result = {}
        for what, act in (
            (
                "flips",
                lambda: flips(patient, args.flips, seed, verify_one_in=one_in),
            ),
            ("truncations", lambda: truncations(patient, args.truncations, seed)),
            ("zeros", lambda: zeros(patient, args.truncations, seed)),
            ("swaps", lambda: swaps(patient)),
        ):
            patient.counts.clear()
            act()
            result[what] = summary(patient.counts)
            print(f"{what}: {time.monotonic() - started:,.0f} s", file=sys.stderr)
        documents = Documents(patient, other)
        documents.mutate(args.mutations, seed, repair_one_in=args.repair_one_in)
        result["mutations"] = summary(documents.counts)
    files = {"files": len(patient.whole), "bytes": sum(map(len, patient.whole.values()))}
    seconds = round(time.monotonic() - started)
    save("damage", {**result, "cache": files, "seconds": seconds, "seed": seed})


if __name__ == "__main__":
    main()
