"""All figures of the page of a cache, as plain JSON types.

In: the place of a sealed cache, and settings. Out: who made it and of what, what its rows keep and
lose, what it takes on the disk, and its most and least certain passages. What cannot be told is
None, with a reason beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import ReportConfig
from cachekd.overview.passages import Window
from cachekd.overview.rows import Drawn, Rows, draw, read_rows
from cachekd.overview.sizes import bytes_of
from cachekd.overview.spread import BINS, count_edges, even_edges, spread_of
from cachekd.overview.tokens import pieces, tokenizer_of
from cachekd.report.text import finite
from cachekd.store.identity import said_of_import
from cachekd.store.io import Location
from cachekd.store.layout import read_document
from cachekd.store.reader import Cache, open_cache

Progress = Callable[[str, int, int], None]
LEAST_TAIL = 1e-8
"""Tail masses below are counted with this one."""
LEAST_KL = 1e-6
"""KL below, in nats, is counted with this one."""
_UNITS_READ = 64


def cache_report(config: ReportConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Figures of a cache; see the module.

    Args:
        config: its first path is the cache.
        progress: called with what is done, records done and records in all.

    Raises:
        CacheNotFound, UnsealedCache, CorruptCache: it cannot be read.
        MismatchError: teacher or tokenizer are not the cache's.
    """
    told: Progress = progress or (lambda stage, done, total: None)
    location = Location(config.paths[0])
    cache = open_cache(config.paths[0], attention=False)
    assert cache.manifest is not None, "an unsealed cache is refused"
    recheck = config.recheck
    named = config.tokenizer or (recheck.tokenizer or recheck.teacher if recheck else None)
    tokenizer = tokenizer_of(cache, named, recheck.revision if recheck else None) if named else None
    drawn = draw(cache, config.sample, config.seed)
    rows = read_rows(cache, drawn.numbers.tolist(), partial(told, "reading"))
    kl, by_domain = _kl(cache, config, drawn, told)
    return {
        "kind": "cache",
        "cache": cache.url,
        "about": _about(cache),
        "made": _made(location, cache, config.seed),
        "totals": dict(cache.totals),
        "sample": _sample(cache, config, drawn, rows),
        **_spreads(rows),
        **kl,
        "domains": _domains(rows, by_domain),
        "bytes": bytes_of(location, cache.manifest, drawn.shards),
        "text": tokenizer is not None,
        "least_certain": [_passage(cache, window, tokenizer) for window in rows.most],
        "most_certain": [_passage(cache, window, tokenizer) for window in rows.least],
    }


def _about(cache: Cache) -> dict[str, Any]:
    """Who the teacher is, what was captured, and which seal was read."""
    identity, manifest = cache.identity, cache.manifest
    assert manifest is not None
    return {
        **identity.provenance,
        "dtype": identity.source["dtype"],
        "quantization": identity.source.get("quantization"),
        "vocab_size": identity.source["vocab_size"],
        "imported": identity.capture.get("imported"),
        "imported_said": said_of_import(identity),
        "source_id": identity.source_id,
        "capture_id": identity.capture_id,
        "attention_id": identity.attention_id,
        **{name: identity.capture[name] for name in ("attn_implementation", "selection", "rows")},
        "values": identity.capture["logprobs"],
        "temperatures": identity.capture["temperatures"],
        "generation": manifest.generation,
        "root": manifest.root,
        "left_out_by_repair": len(manifest.repaired),
        "runs": [
            {name: run[name] for name in ("plan", "new_keys", "skipped", "changed") if name in run}
            for run in manifest.runs
        ],
    }


def _made(location: Location, cache: Cache, seed: int) -> dict[str, Any]:
    """Where and when units were made, as a random part of the commit records tells it."""
    names = sorted(name for name in location.names("units") if name.endswith(".json"))
    random = np.random.default_rng(seed)
    chosen = random.choice(len(names), min(_UNITS_READ, len(names)), replace=False)
    found = [read_document(location, "unit", f"units/{names[int(i)]}") for i in chosen]
    made = [unit["made"] for unit in found if isinstance(unit.get("made"), Mapping)]
    times = sorted(str(one["at"]) for one in made if "at" in one)
    return {
        "units": len(names),
        "units_read": len(found),
        "hosts": sorted({str(one["host"]) for one in made if "host" in one}),
        "devices": sorted({str(unit["numerics"].get("device")) for unit in found}),
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
    }


def _sample(cache: Cache, config: ReportConfig, drawn: Drawn, rows: Rows) -> dict[str, Any]:
    return {
        "records": rows.records,
        "of_records": len(cache),
        "shards": len(drawn.shards),
        "of_shards": drawn.all_shards,
        "rows": len(rows.entries),
        "rows_without_targets": rows.uncaptured,
        "rows_of_responses": rows.responses,
        "seed": config.seed,
    }


def _spreads(rows: Rows) -> dict[str, Any]:
    """How each figure is spread over the captured rows of the sample."""
    edges, log = count_edges(rows.entries)
    mass = 1 - rows.tail.astype(np.float64)
    losses = -rows.next_logprob.astype(np.float64)
    known = losses[np.isfinite(losses)]
    return {
        "mass": spread_of(mass, np.linspace(0, 1, BINS + 1)),
        "tail": spread_of(rows.tail, np.geomspace(LEAST_TAIL, 1, BINS + 1)),
        "entries": spread_of(rows.entries.astype(np.float64), edges),
        "entries_log": log,
        "entropy": spread_of(rows.entropy, even_edges(rows.entropy, 0.0)),
        "next_loss": spread_of(known, even_edges(known, 0.0)),
        "next_loss_infinite": len(losses) - len(known),
    }


def _kl(
    cache: Cache, config: ReportConfig, drawn: Drawn, told: Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """KL of the dense teacher to what is stored, and its mean by domain; or why there is none."""
    if set(cache.identity.capture["selection"]) & {"samples", "tau"}:
        gap = (
            "not measured: the targets are draws, which are right in expectation; a KL of one draw "
            "says nothing of that"
        )
        return {"kl": None, "kl_gap": gap}, {}
    if config.recheck is None:
        return {"kl": None, "kl_gap": "not measured: name the teacher with --teacher"}, {}
    from cachekd.evaluation.recheck import kernel_flag
    from cachekd.evaluation.stored import stored_fidelity

    recheck = config.recheck
    if recheck.attn_implementation == "auto":
        recheck = replace(recheck, attn_implementation=kernel_flag(cache))
    random = np.random.default_rng(config.seed)
    count = min(config.teacher_sample, len(drawn.numbers))
    chosen = np.sort(random.choice(drawn.numbers, count, replace=False))
    found, record_N = stored_fidelity(cache, recheck, chosen.tolist(), told)
    if not found:
        return {"kl": None, "kl_gap": "not measured: no record of the sample has targets"}, {}
    names = [name for name in ("kl_flat", "kl_unigram", "kl_flat_2") if name in found]
    spreads = {name: spread_of(found[name], _kl_edges(found[name])) for name in names}
    kl: dict[str, Any] = {"records": count}
    kl |= spreads | {f"mass_{t}": float(found[f"mass_{t}"].mean()) for t in (1, 2, 4)}
    labels = np.array([cache.domains[int(number)] for number in chosen])[record_N]
    means = {str(name): float(found["kl_flat"][labels == name].mean()) for name in set(labels)}
    return {"kl": kl, "kl_gap": None}, means


def _kl_edges(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.geomspace(LEAST_KL, max(1.0, float(values_N.max())), BINS + 1)


def _domains(rows: Rows, kl: Mapping[str, float]) -> list[dict[str, Any]]:
    """Means by domain, the largest first; empty where all records are of one."""
    names, codes = rows.domains.names, rows.domains.codes
    if len(names) < 2:
        return []
    found = []
    for code, name in enumerate(names):
        own = codes == code
        if own.any():
            loss = -rows.next_logprob[own].astype(np.float64)
            found.append(
                {
                    "domain": name,
                    "rows": int(own.sum()),
                    "mass": float(1 - rows.tail[own].astype(np.float64).mean()),
                    "entries": float(rows.entries[own].mean()),
                    "entropy": float(rows.entropy[own].astype(np.float64).mean()),
                    "next_loss": finite(float(loss.mean())),
                    "kl_flat": kl.get(name),
                }
            )
    return sorted(found, key=lambda one: -one["rows"])


def _passage(cache: Cache, window: Window, tokenizer: Any) -> dict[str, Any]:
    ids = window.ids.tolist()
    return {
        "sample": window.number,
        "domain": cache.domains[window.number],
        "start": window.start,
        "mean_entropy": window.mean_entropy,
        "input_ids": ids,
        "tokens": list(pieces(tokenizer, ids)),
        "entropy": [finite(value) for value in window.entropy.tolist()],
        "next_logprob": [finite(value) for value in window.next_logprob.tolist()],
        "tail": [finite(value) for value in window.tail.tolist()],
        "entries": window.entries.tolist(),
    }
