"""``cachekd inspect``: what a cache is and holds, without torch."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from cachekd.store.identity import Identity
from cachekd.store.reader import Cache, open_cache

from .locations import with_locations
from .options import JSON_OPTION
from .output import emit


def run(cache: str, partial: bool, record: int | None, as_json: bool) -> None:
    """Show what a cache is and holds: teacher, selection, counts, sizes.

    Example:
        cachekd inspect ./cache --record 0
    """
    opened = open_cache(cache, partial=partial)
    emit(facts(opened) if record is None else show_record(opened, record), as_json=as_json)


def facts(cache: Cache) -> dict[str, Any]:
    """Identity and counts of a cache."""
    identity, totals = cache.identity, cache.totals
    targets = max(1, totals["targets"])
    return {
        "cache": cache.url,
        "sealed": cache.sealed,
        "root": cache.root,
        "source_id": identity.source_id,
        "capture_id": identity.capture_id,
        "teacher": identity.provenance.get("teacher"),
        **_asserted(identity),
        "dtype": identity.source["dtype"],
        "vocab_size": identity.source["vocab_size"],
        "attention": identity.capture["attn_implementation"],
        "selection": identity.capture["selection"],
        "values": identity.capture["logprobs"],
        "rows": identity.capture["rows"],
        "temperatures": ", ".join(map(str, identity.capture["temperatures"])),
        **_attention(cache),
        **totals,
        "entries_per_target": totals["entries"] / targets,
        "bytes_per_target": totals["bytes"] / targets,
        "bytes_of_priors": sum(cache.manifest.priors.values()) if cache.manifest else None,
        "skipped": _summed(cache, "skipped"),
        "changed": _summed(cache, "changed"),
        **_responses(cache),
        **_repaired(cache),
    }


def _asserted(identity: Identity) -> dict[str, Any]:
    """Of an imported cache: that its teacher is said to be so, and what of a row is known."""
    if "asserted" not in identity.source:
        return {}
    return {"identity": "asserted, not known", "imported": identity.capture["imported"]}


def _repaired(cache: Cache) -> dict[str, Any]:
    """Files that a repair had to leave out of the seal; precompute makes them anew."""
    lacking = cache.manifest.repaired if cache.manifest else ()
    return {"left_out_by_repair": list(lacking)} if lacking else {}


def _attention(cache: Cache) -> dict[str, Any]:
    """What is kept of the attention, if any, and what it costs."""
    if cache.identity.attention is None:
        return {}
    tokens = max(1, cache.totals["tokens"])
    return {
        "attention_id": cache.identity.attention_id,
        "attention_targets": cache.identity.attention,
        "attention_bytes_per_token": cache.totals.get("attention_bytes", 0) / tokens,
    }


def _responses(cache: Cache) -> dict[str, Any]:
    """What the teacher wrote responses with, by run."""
    runs = cache.manifest.runs if cache.manifest else ()
    return {
        f"responses (run {i})": run["responses"] for i, run in enumerate(runs) if "responses" in run
    }


def _summed(cache: Cache, name: str) -> dict[str, int]:
    runs = cache.manifest.runs if cache.manifest else ()
    return {
        f"{reason} (run {i})": n for i, run in enumerate(runs) for reason, n in run[name].items()
    }


def show_record(cache: Cache, number: int) -> dict[str, Any]:
    """One sample: its tokens, roles, and how much mass its head keeps."""
    if not 0 <= number < len(cache):
        raise click.BadParameter(
            f"expected 0 to {len(cache) - 1}; found {number}", param_hint="--record"
        )
    record = cache[number]
    counts = np.diff(record.logits.offsets)
    attention = record.attention
    return {
        "sample": number,
        **_asserted(cache.identity),
        "key": record.key.hex(),
        "tokens": len(record.input_ids),
        "prompt_length": record.prompt_length,
        "domain": record.domain,
        "input_ids": record.input_ids.tolist(),
        "roles": record.roles.tolist(),
        "entries": counts.tolist(),
        "head_mass": [round(float(mass), 6) for mass in -np.expm1(record.logits.tail)],
        **({} if attention is None else {"attention_rows": attention.rows.tolist()}),
        "next_logprob": [round(float(value), 4) for value in record.logits.next_logprob],
    }


command = with_locations(
    "inspect",
    run,
    [
        click.Argument(["cache"]),
        click.Option(["--partial"], is_flag=True, help="Accept an unsealed cache."),
        click.Option(["--record"], type=int, help="Show this sample."),
        JSON_OPTION,
    ],
)
