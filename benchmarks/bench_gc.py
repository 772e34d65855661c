"""What compaction holds in memory, and what it and a union ask of a store, by the shards there are.

Made-up caches of small shards. Memory is what a process grows by at its peak (``VmHWM``, which
counts mapped pages of files too) while `gc --compact` unites a cache in a folder, after it has
united a small one; for caches of several sizes and one target size. Requests are counted in a store
in memory (a listing is one, however long): of a seal, of a push of two shards more, of a compaction
and of the collection after it. Nothing is timed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import forget_peak, in_child, resident, save
from synthetic import Shape, write_cache

from cachekd.config import GcConfig, PushConfig
from cachekd.sharing.push import push
from cachekd.store.gc import collect
from cachekd.store.io import Location
from cachekd.store.layout import manifest_name
from cachekd.store.remote import RemoteFolder
from cachekd.store.seal import seal

TARGET = 16 << 20
SMALL = Shape(shards=4, documents=2, tokens=32, vocab=512, k=8)


def compacted(place: object, target: int) -> dict[str, Any]:
    settings = {"compact": True, "yes": True, "older_than": 0.0, "target_size": f"{target}B"}
    return collect(GcConfig(cache=str(place), **settings))


def memory(shards: int, work: Path) -> dict[str, float]:
    """Of the compaction of a cache of this many shards of about 1 MB."""
    cache, first = work / "large", work / "small"
    write_cache(cache, Shape(shards=shards, documents=16, tokens=512, k=64))
    write_cache(first, SMALL)
    compacted(first, TARGET)
    before = resident("VmRSS")
    forget_peak()
    done = compacted(cache, TARGET)
    peak = resident("VmHWM") - before
    shutil.rmtree(work)
    return {
        "cache_mb": round(done["bytes_before"] / 1e6, 1),
        "shards_before": done["shards_before"],
        "shards_after": done["shards_after"],
        "grew_by_mb": round(peak / 1e6, 1),
    }


def requests(shards: int, work: Path) -> dict[str, int]:
    """Of a seal, a union, a compaction and a collection of a cache of this many shards."""
    shape = Shape(shards=shards, documents=2, tokens=32, vocab=512, k=8)
    write_cache(work / "cache", shape)
    more = Shape(shards=2, documents=3, tokens=32, vocab=512, k=8)
    write_cache(work / "more", more)
    place = f"memory://bench/{shards}"
    push(PushConfig(cache=str(work / "cache"), location=place))
    location = Location(place)
    location.remove(manifest_name(1))
    counts = {
        "seal": _counted(lambda: seal(location)),
        "push_of_two_more": _counted(
            lambda: push(PushConfig(cache=str(work / "more"), location=place))
        ),
        "compact_and_collect": _counted(lambda: compacted(place, TARGET)),
    }
    shutil.rmtree(work)
    return counts


def _counted(act: Callable[[], object]) -> int:
    real, asked = RemoteFolder._call, [0]

    def call(self: RemoteFolder, *args: Any, **further: Any) -> Any:
        asked[0] += 1
        return real(self, *args, **further)

    RemoteFolder._call = call  # type: ignore[method-assign]
    try:
        act()
    finally:
        RemoteFolder._call = real  # type: ignore[method-assign]
    return asked[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small caches, nothing saved")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "target_mb": TARGET / 1e6,
            "memory": [
                in_child(memory, shards, Path(folder) / "memory")
                for shards in ((24,) if quick else (50, 100, 200, 400))
            ],
            "requests": {
                str(shards): in_child(requests, shards, Path(folder) / "requests")
                for shards in ((4, 8) if quick else (100, 400))
            },
        }
    save("gc", result, keep=not quick)


if __name__ == "__main__":
    main()
