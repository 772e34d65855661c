"""Verifying a cache: every file, digest, count and record; all problems are listed, not the first.

Comes in: a location, and whether the seal is looked at or what is committed, in whole or a sample
of the shards. Goes out: a `VerifyReport`. Nothing is written.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count

from cachekd.errors import CacheNotFound, ConfigError, CorruptCache, UnsealedCache
from cachekd.store.committed import Committed, read_committed
from cachekd.store.identity import Identity
from cachekd.store.identity_files import read_identity
from cachekd.store.io import Location
from cachekd.store.layout import ATTENTION_CAPTURE, CACHE, CAPTURE
from cachekd.store.manifest import Manifest, generations
from cachekd.store.problems import Problem, document_problem, problem_of
from cachekd.store.samples import SampleTable
from cachekd.store.verify_seal import (
    captures,
    check_content,
    check_files,
    check_generated,
    check_identity,
    check_indexes,
    check_named,
    check_samples,
    newest_seal,
)
from cachekd.store.verify_shards import check_shards

IDENTITY = frozenset({CACHE, CAPTURE, ATTENTION_CAPTURE})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        problems: one line each, empty for a clean cache.
        findings: the same problems with their parts.
        files: files that were looked at.
        shards, shards_checked: shards of logits, and how many of them were decoded in whole.
        records: records that were decoded.
        sealed: whether a seal was verified (else what is committed).
    """

    problems: tuple[str, ...]
    findings: tuple[Problem, ...]
    files: int
    shards: int = 0
    shards_checked: int = 0
    records: int = 0
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """All that an examination learned of a cache.

    Attributes:
        identity: None if it is damaged: then nothing else was looked at but the seals.
        manifest: the newest seal if it is whole; not looked at for what is committed alone.
        committed: good plans and records.
        samples: all samples, if all their shards are whole.
        findings: what is wrong.
        files, shards, shards_checked, records: see `VerifyReport`.
    """

    identity: Identity | None
    manifest: Manifest | None
    committed: Committed | None = None
    samples: SampleTable | None = None
    findings: tuple[Problem, ...]
    files: int = 0
    shards: int = 0
    shards_checked: int = 0
    records: int = 0


def verify(
    url: str,
    *,
    partial: bool = False,
    sample: float = 1.0,
    sample_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check digests, counts and decodability of a cache.

    Args:
        url: folder or fsspec URL.
        partial: verify what is committed, without or beyond a seal.
        sample: share of the shards that is decoded, above 0 to 1; of the others sizes are checked.
        sample_seed: of the draw.
        progress: called with records done and records in all.

    Raises:
        CacheNotFound: there is no cache.
        UnsealedCache: it has no seal and ``partial`` is off.
        ConfigError: the share is none.
        StoreError: it is of another format version, or its identity cannot be read.
    """
    if not 0 < sample <= 1:
        raise ConfigError(f"sample: expected a share above 0 and at most 1; found {sample:g}")
    location = Location(url, held=False)  # what is stored is looked at, no copy of it

    def draw(digests: Iterable[str]) -> frozenset[str]:
        return drawn(digests, sample, sample_seed)

    found = examine(location, partial=partial, draw=draw, step=progress)
    return VerifyReport(
        problems=tuple(problem.line(location) for problem in found.findings),
        findings=found.findings,
        files=found.files,
        shards=found.shards,
        shards_checked=found.shards_checked,
        records=found.records,
        sealed=found.manifest is not None,
    )


def drawn(digests: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """A random share of digests, at least one where there are any."""
    names = sorted(digests)
    count = math.ceil(share * len(names))
    return frozenset(names if share == 1 else random.Random(seed).sample(names, count))  # noqa: S311


def examine(
    location: Location,
    *,
    partial: bool,
    draw: Callable[[Iterable[str]], frozenset[str]],
    step: Callable[[int, int], None] | None = None,
) -> Examined:
    """Look at everything; ``draw`` chooses the shards to decode (see `verify` for the rest)."""
    manifest, seals = (None, []) if partial else newest_seal(location)
    identity, wrong = whole_identity(location)
    if manifest is None and not (partial or seals or wrong):
        raise UnsealedCache(
            f"{location.url} is not sealed; pass --partial to verify what is committed"
        )
    files = 0 if partial else len(generations(location))
    if identity is None:
        others = check_files(location, manifest) if manifest else []
        findings = _once([*wrong, *seals, *(p for p in others if p.file not in IDENTITY)])
        return Examined(identity=None, manifest=manifest, findings=findings, files=files + 1)
    found = _examine_content(location, identity, manifest, draw, step)
    problems = (*wrong, *seals, *found.findings)
    if manifest and found.samples is not None and not (wrong or found.findings):
        assert found.committed is not None, "the identity is whole"
        problems += tuple(check_content(location, manifest, found.committed.state, found.samples))
    files += found.files + 1 + len(captures(identity))
    return replace(found, findings=_once(problems), files=files)


def _examine_content(
    location: Location,
    identity: Identity,
    manifest: Manifest | None,
    draw: Callable[[Iterable[str]], frozenset[str]],
    step: Callable[[int, int], None] | None,
) -> Examined:
    """Look at what a seal names, or else at what is committed."""
    committed = read_committed(location, identity, manifest.files if manifest else None)
    counts = {r.shard.digest: r.shard.rows for r in committed.records().values()}
    chosen = draw(counts)
    steps = _steps(step, sum(counts[digest] for digest in chosen))
    checked = check_shards(location, identity, committed, chosen, steps)
    named = manifest or committed.state
    digests = manifest.samples if manifest else committed.state.samples()
    samples, lost = check_samples(location, digests, named.written())
    generated, responses = check_generated(location)
    indexes = check_indexes(location)
    own, files = check_named(location, identity, manifest, counts) if manifest else ([], 0)
    return Examined(
        identity=identity,
        manifest=manifest,
        committed=committed,
        samples=samples,
        findings=(*committed.problems, *checked.problems, *lost, *own, *indexes, *generated),
        files=files + len(committed.digests) + checked.files + len(digests) + responses,
        shards=len(counts),
        shards_checked=checked.shards,
        records=checked.records,
    )


def whole_identity(location: Location) -> tuple[Identity | None, list[Problem]]:
    """The identity if it is whole, and what is wrong with it.

    Raises:
        CacheNotFound: there is no cache.
    """
    try:
        identity = read_identity(location)
    except CacheNotFound as error:
        if not (location.lists and location.names("plans")):
            raise
        return None, [problem_of(location, CACHE, error, expected="the identity of the cache")]
    except CorruptCache as error:
        kinds = {CACHE: "cache", CAPTURE: "capture", ATTENTION_CAPTURE: "capture"}
        names = [
            n for n in kinds if n != ATTENTION_CAPTURE or location.exists(n) or n in str(error)
        ]
        found = [document_problem(location, kinds[name], name) for name in names]
        wrong = [problem for problem in found if problem is not None]
        return None, wrong or [problem_of(location, CACHE, error, expected="an identity")]
    return identity, check_identity(location, identity)


def _steps(step: Callable[[int, int], None] | None, whole: int) -> Callable[[], None]:
    done = count(1)
    return lambda: step(next(done), whole) if step else None


def _once(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """What several checks or units met is said once."""
    return tuple({problem.same(): problem for problem in reversed([*problems])}.values())[::-1]
