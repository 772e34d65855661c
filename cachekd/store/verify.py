"""Verifying a cache: every file, digest, count and record; all problems are listed, not the first.

A problem names the file, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache, StoreError, UnsealedCache
from cachekd.store.attention_shards import AttentionFacts, AttentionShard
from cachekd.store.content import root_digest, totals
from cachekd.store.identity import Identity
from cachekd.store.index import build_index, load_index
from cachekd.store.io import Location
from cachekd.store.layout import index_name, prior_name
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.priors import Priors
from cachekd.store.seal import captured, load_samples
from cachekd.store.shards import Shard, ShardFacts
from cachekd.store.state import read_identity, read_state


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        problems: one line each, empty for a clean cache.
        files: files whose digests were checked.
        records: records that were decoded.
        sealed: whether a seal was verified (else what is committed).
    """

    problems: tuple[str, ...]
    files: int
    records: int
    sealed: bool


def verify(
    url: str, *, partial: bool = False, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check digests, counts and decodability of a whole cache.

    Args:
        url: folder or fsspec URL.
        partial: verify what is committed, without or beyond a seal.
        progress: called with records done and records in all.

    Raises:
        CacheNotFound: there is no cache.
        UnsealedCache: it has no seal and ``partial`` is off.
    """
    location = Location(url)
    try:
        manifest = None if partial else read_manifest(location)
        identity = read_identity(location)
    except CorruptCache as error:
        return VerifyReport(problems=(str(error),), files=1, records=0, sealed=not partial)
    if manifest is None and not partial:
        raise UnsealedCache(
            f"{location.url} is not sealed; pass --partial to verify what is committed"
        )
    try:
        shards, attention = _named(location, manifest)
    except CorruptCache as error:
        return VerifyReport(problems=(str(error),), files=1, records=0, sealed=False)
    done, whole = 0, sum(facts.rows for facts in shards.values())

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, whole)

    keys, problems = _check_shards(location, identity, shards, attention, step)
    files = len(shards) + len(attention)
    files += len({facts.prior for facts in shards.values() if facts.prior})
    if manifest:
        files += len(manifest.files) + len(manifest.samples) + 1
        problems += _check_seal(location, manifest, keys)
    return VerifyReport(
        # One lost prior is the problem of every shard that it packs: said once.
        problems=tuple(dict.fromkeys(problems)),
        files=files,
        records=done,
        sealed=manifest is not None,
    )


def _check_shards(
    location: Location,
    identity: Identity,
    shards: Mapping[str, ShardFacts],
    attention: Mapping[str, AttentionFacts],
    step: Callable[[], None],
) -> tuple[dict[str, Keys], list[str]]:
    """Keys of each shard that is whole, with its attention, and what is wrong with the others."""
    priors, keys, problems = Priors(location), dict[str, Keys](), []
    for digest, facts in shards.items():
        try:
            shard = Shard(location, facts, identity.capture_id, priors=priors)
            keys[digest] = _check_shard(shard, facts, step)
            if identity.attention_id is not None:
                _check_attention(location, shard, attention.get(digest), identity.attention_id)
        except StoreError as error:
            problems.append(str(error))
    return keys, problems


def _named(
    location: Location, manifest: Manifest | None
) -> tuple[Mapping[str, ShardFacts], Mapping[str, AttentionFacts]]:
    """Shards that the seal names, or else all commit records, whose samples must be whole."""
    if manifest:
        return manifest.shards, manifest.attention
    state = read_state(location)
    load_samples(location, state.samples(), state.written())
    return state.shards(), state.attention()


def _check_shard(shard: Shard, facts: ShardFacts, step: Callable[[], None]) -> Keys:
    """Decode every record of a shard, and give its keys in row order."""
    found = [0, 0]
    for row in range(len(shard)):
        tokens, entries = shard.check_record(row)
        found = [found[0] + tokens, found[1] + entries]
        step()
    if found != [facts.tokens, facts.entries]:
        raise CorruptCache(
            f"{shard.name}: expected {facts.tokens} tokens and {facts.entries} entries, "
            f"found {found[0]} and {found[1]}"
        )
    return Keys.of(shard.keys())


def _check_attention(
    location: Location, shard: Shard, facts: AttentionFacts | None, capture_id: str
) -> None:
    """Decode the attention of every record of a shard of logits."""
    if facts is None:
        raise CorruptCache(f"{location.path(shard.name)}: no attention shard goes with it")
    attention = AttentionShard(location, facts, capture_id)
    if attention.keys() != shard.keys():
        raise CorruptCache(f"{attention.name}: its documents are not those of {shard.name}")
    tokens = queries = 0
    for row in range(len(attention)):
        input_ids = shard.record(row)[1]
        tokens += len(input_ids)
        queries += attention.check_record(row, input_ids)
    if (queries, tokens) != (facts.queries, facts.tokens):
        raise CorruptCache(
            f"{attention.name}: expected {facts.queries} query rows of {facts.tokens} tokens, "
            f"found {queries} of {tokens}"
        )


def _check_seal(location: Location, manifest: Manifest, keys: Mapping[str, Keys]) -> list[str]:
    problems = []
    for name, digest in manifest.files.items():
        try:
            found = bytes_digest(location.read(name))
            if found != digest:
                problems.append(f"{location.path(name)}: expected sha256 {digest}, found {found}")
        except StoreError as error:
            problems.append(str(error))
    root = root_digest(
        manifest.source_id,
        manifest.capture_id,
        manifest.samples,
        manifest.shards,
        manifest.attention_id,
        manifest.attention,
    )
    if root != manifest.root:
        problems.append(f"{location.url}: the root digest of the seal does not fit what it names")
    if manifest.priors.keys() != {facts.prior for facts in manifest.shards.values()} - {None}:
        problems.append(f"{location.url}: the priors of the seal are not those of its shards")
    for digest, size in manifest.priors.items():
        name = prior_name(digest)
        if location.exists(name) and location.size(name) != size:
            problems.append(f"{location.path(name)}: the seal says {size} bytes")
    try:
        problems += _check_index(location, manifest, keys)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _check_index(location: Location, manifest: Manifest, keys: Mapping[str, Keys]) -> list[str]:
    name = index_name(manifest.index)
    data = location.read(name)
    if bytes_digest(data) != manifest.index:
        return [f"{location.path(name)}: its bytes do not have the digest it names"]
    index = load_index(name, data)
    samples = captured(load_samples(location, manifest.samples, manifest.written()), index)
    problems = []
    # Only whole shards were read: with one missing the index cannot be made again.
    if keys.keys() == manifest.shards.keys() and build_index(keys).dump() != data:
        problems.append(f"{location.path(name)}: it does not point to the rows of the shards")
    if totals(manifest.shards, samples, index, manifest.attention) != dict(manifest.totals):
        problems.append(f"{location.url}: the totals of the seal are not those of its files")
    return problems
