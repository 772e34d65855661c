"""Repair of a damaged cache: what is bad goes, what follows from the rest comes back, it is sealed.

Comes in: a location. Goes out: a cache whose every file is whole, a seal that names all that is
left, and a `RepairReport`. What is gone is made anew by the precompute command that made it.

The seal comes first, then bad files go, the record of a unit before its shards: stopped anywhere,
the next repair finds what is left of the damage and ends in the same bytes. A file that cannot be
read, for want of access or of a disk, is no damaged file: then nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cachekd.errors import CorruptCache, StoreError
from cachekd.store.claims import alone
from cachekd.store.damage import Damage
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION_CAPTURE,
    CACHE,
    CAPTURE,
    as_written,
    load_document,
    manifest_name,
    most_bytes,
    unit_name,
)
from cachekd.store.manifest import Manifest, generations, hinted_generation, load_seal
from cachekd.store.problems import Problem, file_problem
from cachekd.store.seal import (
    checked_content,
    keep_index,
    left_out,
    publish,
    seal_data,
    show,
)
from cachekd.store.verify import IDENTITY, Examined, examine, whole_identity
from cachekd.store.verify_seal import captures

_MADE_ANEW = (
    "plans/",
    "units/",
    "samples/",
    "logits/",
    "attention/",
    "priors/",
    "index/",
    "manifest-",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What `repair` found and did.

    Attributes:
        found: what was wrong before.
        removed: files that were taken away.
        rebuilt: files that were written again from others.
        lacking: files that the precompute command has to make anew.
        left: what is wrong still and cannot be mended here or by precompute.
        problems: ``left`` as lines.
        generation: of the newest seal, or None.
    """

    found: tuple[Problem, ...]
    removed: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    left: tuple[Problem, ...] = ()
    problems: tuple[str, ...] = ()
    generation: int | None = None


def repair(url: str, *, progress: Callable[[int, int], None] | None = None) -> RepairReport:
    """Mend a cache as far as that can be done without its teacher and its data.

    Args:
        url: folder or fsspec URL.
        progress: called with records checked and records in all.

    Raises:
        CacheNotFound: there is no cache.
        StoreError: a file cannot be written or taken away, or another process writes the cache.
    """
    location = Location(url, held=False)
    with alone(location):
        return _repair(location, progress)


def _repair(location: Location, progress: Callable[[int, int], None] | None) -> RepairReport:
    whole = whole_identity(location)[0] is not None
    respelt = _respell(location) if whole else ()
    before = examine(location, partial=True, draw=frozenset, step=progress)
    hopeless = [p for p in before.findings if p.file in IDENTITY or not p.certain]
    if before.identity is None or hopeless:
        lines = tuple(problem.line(location) for problem in hopeless)
        return RepairReport(
            found=before.findings, rebuilt=respelt, left=tuple(hopeless), problems=lines
        )
    damage, seals = Damage.of(before), _Seals.of(location, before.identity)
    rebuilt = [*respelt, *_reseal(location, before.identity, damage, seals)]
    removed = _remove(location, damage)
    removed += _remove_seals(location, _Seals.of(location, before.identity).damaged)
    return _report(location, before, damage, removed, rebuilt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seals:
    """Seals of a cache: the highest generation that there is or was, and which are whole."""

    top: int
    newest: Manifest | None
    before: Manifest | None
    damaged: tuple[int, ...]

    @classmethod
    def of(cls, location: Location, identity: Identity) -> _Seals:
        found, whole = generations(location), {}
        for generation in found:
            try:
                seal = load_seal(location, generation)
            except CorruptCache:
                continue
            if _is_of(location, identity, seal):
                whole[generation] = seal
        top = max([*found, hinted_generation(location) or 0], default=0)
        return cls(
            top=top,
            newest=whole.get(top),
            before=whole[max(whole)] if whole else None,
            damaged=tuple(generation for generation in found if generation not in whole),
        )


def _is_of(location: Location, identity: Identity, seal: Manifest) -> bool:
    """Whether a seal is one of this cache."""
    files = (CACHE, *captures(identity))
    return not any(file_problem(location, file, digest=str(seal.files.get(file))) for file in files)


def _respell(location: Location) -> tuple[str, ...]:
    """Write documents as they were, where their content is whole and their white space is not."""
    kinds = {CACHE: "cache", CAPTURE: "capture", ATTENTION_CAPTURE: "capture"}
    kinds |= {f"units/{name}": "unit" for name in location.names("units")}
    respelt = []
    for file, kind in kinds.items():
        try:
            data = location.read(file, most_bytes(kind))
            content: dict[str, Any] = load_document(kind, file, data)
        except StoreError:  # found again, and told, by the examination
            continue
        again = as_written(kind, content)
        if again != data:
            location.replace(file, again)
            respelt.append(file)
    return tuple(respelt)


def _reseal(location: Location, identity: Identity, damage: Damage, seals: _Seals) -> list[str]:
    """Seal what is left, if that is not what the newest seal says; the files that were written.

    A seal that was damaged comes back under its own generation; what was never sealed is not
    sealed here. Without a plan its units cannot be named: then the seal that names them stays.
    """
    if not seals.top or damage.plans:
        return []
    content, index_data = checked_content(location, damage.left, leave_out=True)
    lacking = damage.gone() - content["files"].keys()
    if seals.before:
        lacking.update(left_out(seals.before, content).get("repaired", ()))
    if lacking:
        content["repaired"] = sorted(lacking)
    newest, last = seals.newest, seals.before
    written = keep_index(location, content["index"], index_data)
    # What has the name of a newer seal and cannot be read says no more than this one, if it fits.
    if last and location.read(manifest_name(last.generation)) == seal_data(
        content, last.generation
    ):
        return written + show(location, identity, last)
    # Where nothing is lacking and the same files are named, it is the seal itself that was wrong.
    wrong = newest is None or (newest.files == content["files"] and not lacking)
    own = seals.top if wrong else None
    sealed = publish(location, identity, content, index_data, after=seals.top, generation=own)
    assert sealed is not None, "no other process works on the cache"
    return [*written, manifest_name(sealed.generation)]


def _remove(location: Location, damage: Damage) -> list[str]:
    """Take bad files away: records first, so that no record names a file that is gone."""
    named = {name for record in damage.kept.values() for name in record.files()}
    records = [unit_name(*key) for key in sorted(damage.dropped)]
    folders = ("logits/", "attention/", "samples/", "priors/", "plans/", "generated/", "index/")
    others = sorted(name for name in damage.files if name.startswith(folders))
    others += _unnamed(location, named)
    removed = []
    for name in [*records, *others]:
        needed = name in named and not name.startswith("priors/")
        needed |= name.startswith("index/") and _whole_index(location, name)  # written again
        if not needed and location.exists(name):
            location.remove(name)
            removed.append(name)
    return removed


def _unnamed(location: Location, named: Collection[str]) -> list[str]:
    """Bad shards that no record names: of units whose record is bad too, or went already."""
    bad = []
    for folder, suffix in (("logits", ".parquet"), ("attention", ".safetensors")):
        for base in location.names(folder):
            name = f"{folder}/{base}"
            if name not in named and base.endswith(suffix):
                problem = file_problem(location, name, digest=base.removesuffix(suffix))
                bad += [name] if problem and problem.certain else []
    return bad


def _whole_index(location: Location, name: str) -> bool:
    """Whether an index has the digest that it is named by."""
    return file_problem(location, name, digest=name.split("/")[1]) is None


def _remove_seals(location: Location, damaged: Iterable[int]) -> list[str]:
    """Take away seals that cannot be read and are not written again."""
    names = [manifest_name(generation) for generation in damaged]
    for name in names:
        location.remove(name)
    return names


def _report(
    location: Location,
    before: Examined,
    damage: Damage,
    removed: list[str],
    rebuilt: list[str],
) -> RepairReport:
    """Look again, at all but the content of shards, which was looked at."""
    assert before.identity is not None, "else nothing was done"
    after = _Seals.of(location, before.identity)

    def nothing(digests: Iterable[str]) -> frozenset[str]:
        return frozenset()

    found = list(examine(location, partial=True, draw=nothing).findings)
    if after.top:
        found += examine(location, partial=False, draw=nothing).findings
    anew = {p.file for p in found if p.file.startswith(_MADE_ANEW)}
    anew |= damage.gone() if before.findings else set()
    anew |= set(after.newest.repaired) if after.newest else set()
    left = tuple(p for p in dict.fromkeys(found) if p.file not in anew)
    return RepairReport(
        found=before.findings,
        removed=tuple(removed),
        rebuilt=tuple(rebuilt),
        lacking=tuple(sorted(anew)),
        left=left,
        problems=tuple(problem.line(location) for problem in left),
        generation=after.newest.generation if after.newest else None,
    )
