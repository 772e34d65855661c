"""What a seal says: everything committed with its digests, totals and a root digest.

Comes in: what is committed in a cache. Goes out: the fields of a manifest. The root digest is over
content alone (identity, samples, shards).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from cachekd.data.digests import bytes_digest, json_id
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.identity import Identity
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    ATTENTION_CAPTURE,
    CACHE,
    CAPTURE,
    KIND,
    plan_name,
    prior_name,
    unit_name,
)
from cachekd.store.plan import Plan
from cachekd.store.samples import SampleTable
from cachekd.store.shards import ShardFacts
from cachekd.store.skipped import FIELD, Skipped, in_force, plain
from cachekd.store.state import CacheState


def content_of(
    location: Location, state: CacheState, samples: SampleTable, index: KeyIndex
) -> tuple[dict[str, Any], bytes]:
    """Fields of the seal of what is committed, without its generation, and bytes of the index."""
    shards = state.shards()
    index_data = index.dump()
    identity, attention, skipped = state.identity, state.attention(), state.skipped()
    content: dict[str, Any] = {
        "root": root_digest(
            identity.source_id,
            identity.capture_id,
            state.samples(),
            shards,
            identity.attention_id,
            attention,
        ),
        "source_id": identity.source_id,
        "kinds": _kinds(identity, shards, attention),
        "samples": state.samples(),
        "priors": {digest: location.size(prior_name(digest)) for digest in state.priors()},
        "index": bytes_digest(index_data),
        "files": _files(location, state),
        **({FIELD: {name: plain(rows) for name, rows in skipped.items()}} if skipped else {}),
        "totals": totals(shards, samples, index, attention, skipped),
        "runs": [
            {
                "plan": digest,
                "new_keys": len(plan.keys),
                "skipped": dict(plan.skipped),
                "changed": dict(plan.changed),
                **_written(plan),
            }
            for digest, plan in state.plans.items()
        ],
    }
    return content, index_data


def _files(location: Location, state: CacheState) -> dict[str, str]:
    """sha256 of documents; of plans and commit records as they were when the state was read."""
    names = [CACHE, CAPTURE]
    if state.identity.attention_id is not None:
        names.append(ATTENTION_CAPTURE)
    return {
        **{name: bytes_digest(location.read(name)) for name in names},
        **{plan_name(digest): digest for digest in state.plans},
        **{unit_name(*key): record.file_digest for key, record in state.units.items()},
    }


def _written(plan: Plan) -> dict[str, Any]:
    """How the teacher wrote the responses of a run, and the shards of these samples."""
    if plan.responses is None:
        return {}
    return {"responses": dict(plan.responses), "written": list(plan.samples)}


def _kinds(
    identity: Identity,
    shards: Mapping[str, ShardFacts],
    attention: Mapping[str, AttentionFacts],
) -> dict[str, Any]:
    """Capture id and shards of each kind of target."""
    logits = [_plain(facts) for facts in shards.values()]
    kinds: dict[str, Any] = {KIND: {"capture_id": identity.capture_id, "shards": logits}}
    if identity.attention_id is not None:
        kinds[ATTENTION] = {
            "capture_id": identity.attention_id,
            "shards": [{**_plain(facts), "logits": digest} for digest, facts in attention.items()],
        }
    return kinds


def _plain(facts: ShardFacts | AttentionFacts) -> dict[str, Any]:
    """What ``asdict`` gives, which copies each number and string deeply."""
    return {field.name: getattr(facts, field.name) for field in fields(facts)}


def root_digest(
    source_id: str,
    capture_id: str,
    samples: Iterable[str],
    shards: Iterable[str],
    attention_id: str | None,
    attention: Mapping[str, AttentionFacts],
) -> str:
    """Digest of the content of a cache: of every kind of target that it holds."""
    root: dict[str, Any] = {
        "source_id": source_id,
        "capture_id": capture_id,
        "samples": sorted(samples),
        "shards": sorted(shards),
    }
    if attention_id is not None:
        digests = sorted({facts.digest for facts in attention.values()})
        root["attention"] = {"capture_id": attention_id, "shards": digests}
    return json_id(root)


def totals(
    shards: Mapping[str, ShardFacts],
    samples: SampleTable,
    index: KeyIndex,
    attention: Mapping[str, AttentionFacts],
    skipped: Mapping[str, Skipped],
) -> dict[str, int]:
    """Counts over a cache: samples (of them those written by the teacher), keys, and shards."""
    let_go = sum(map(len, in_force(skipped, index).values()))
    further = {
        "attention_shards": len(attention),
        "attention_rows": sum(facts.queries for facts in attention.values()),
        "attention_bytes": sum(facts.bytes for facts in attention.values()),
    }
    written = int(samples.written.sum())
    return {
        **(further if attention else {}),
        **({"generated": written} if written else {}),
        **({FIELD: let_go} if let_go else {}),
        "samples": len(samples.ids),
        "sample_tokens": int(samples.lengths.sum()),
        "keys": len(index),
        "shards": len(shards),
        "tokens": sum(facts.tokens for facts in shards.values()),
        "targets": sum(facts.tokens - facts.rows for facts in shards.values()),
        "entries": sum(facts.entries for facts in shards.values()),
        "bytes": sum(facts.bytes for facts in shards.values()),
    }
