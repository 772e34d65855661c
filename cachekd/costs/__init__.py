"""What a capture would cost and what it would lose, measured on a sample before it is paid for.

Comes in: a `PlanConfig`. Goes out: a report of plain JSON types, and an HTML page if asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cachekd.config import DataConfig, ModelConfig, PlanConfig, precompute_config
from cachekd.costs.candidates import candidates, flags_of
from cachekd.costs.measure import measure
from cachekd.costs.page import write_report
from cachekd.costs.recommend import Recommendation, Row, kl_limit, recommend, rows_of
from cachekd.costs.sample import DataSample, draw_sample
from cachekd.costs.speed import tokens_per_second
from cachekd.data.digests import json_id
from cachekd.plugins import find
from cachekd.store.identity import source_facts
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import Teacher, TeacherFacts


def plan(
    config: PlanConfig, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure candidate settings on a random sample of the data, and recommend one.

    Args:
        config: see `PlanConfig`.
        progress: called with tokens done and tokens of the sample.

    Returns:
        counts, the teacher's speed, a row for each candidate, and the recommendation.

    Raises:
        CachekdError: whatever is wrong with settings, data or teacher.
    """
    settings = precompute_config(config)
    backend = find("teachers", config.backend)
    facts: TeacherFacts = backend.identify(settings)
    source = source_facts(settings, facts, tokenizer_facts(facts.tokenizer_folder))
    settings_tried = candidates(config, json_id(source), source)
    sample = draw_sample(config, facts, datetime.now())
    teacher: Teacher = backend.load(settings, facts, config.threads or os.cpu_count() or 1)
    scored = _adding_up(sample, progress)
    figures, entropy = measure(teacher, sample, settings_tried, seed=config.seed, progress=scored)
    rate = tokens_per_second(teacher, sample, settings_tried[0].selection, config.batch_tokens)
    rows = rows_of(figures, config, tokens=sample.tokens, bookkeeping=sample.bookkeeping)
    advice = recommend(rows, config, entropy)
    report = {
        "teacher": settings.teacher,
        "source_id": json_id(source),
        **_counts(sample),
        "entropy": entropy,
        "kl_limit": kl_limit(config, entropy)[0],
        **_teacher_time(config, sample.tokens, rate),
        "candidates": [plain(row) for row in rows],
        "recommendation": _plain_advice(advice, config),
    }
    if config.out is not None:
        write_report(Path(config.out), report)
    return report


def _adding_up(
    sample: DataSample, progress: Callable[[int, int], None] | None
) -> Callable[[int], None]:
    """Takes tokens as they are scored; tells how many are done, and of how many."""
    whole = sum(len(one.input_ids) for one in (*sample.learned, *sample.measured))
    done = 0

    def scored(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress:
            progress(done, whole)

    return scored


def plain(row: Row) -> dict[str, Any]:
    """A row as plain JSON types; what was not measured or not priced is left out."""
    figures = row.figures
    values = {
        "name": figures.candidate.name,
        "flags": figures.candidate.flags,
        "on_front": row.on_front,
        "sampled": figures.candidate.sampled,
        "entries": figures.entries,
        **figures.means,
        "kl_unigram_error": figures.kl_error,
        "targets_bytes_per_token": row.targets,
        "input_ids_bytes_per_token": row.input_ids,
        "container_bytes_per_token": row.container,
        "bytes_per_token": row.bytes_per_token,
        "prior_bytes": figures.size.prior,
        "bytes_total": round(row.total),
        "bytes_per_1e9_tokens": round(row.total_giga),
        "storage_cost": row.storage_cost,
        "storage_cost_per_1e9_tokens": row.storage_cost_giga,
    }
    return {name: value for name, value in values.items() if value is not None}


def _counts(sample: DataSample) -> dict[str, Any]:
    return {
        "samples": sample.samples,
        "documents": sample.documents,
        "tokens": sample.tokens,
        "skipped": sample.skipped,
        "documents_learned_from": len(sample.learned),
        "documents_measured": len(sample.measured),
        "tokens_measured": sum(len(one.input_ids) for one in sample.measured),
        "rows_measured": sum(int(one.rows.sum()) for one in sample.measured),
    }


def _teacher_time(config: PlanConfig, tokens: int, rate: float) -> dict[str, Any]:
    """Hours of the teacher, and their price if an hour has one."""
    hours, giga = tokens / rate / 3600, 1e9 / rate / 3600
    times = {
        "teacher_tokens_per_second": rate,
        "teacher_hours": hours,
        "teacher_hours_per_1e9_tokens": giga,
    }
    if config.price_per_hour is None:
        return times
    return times | {
        "teacher_cost": hours * config.price_per_hour,
        "teacher_cost_per_1e9_tokens": giga * config.price_per_hour,
    }


def _plain_advice(advice: Recommendation, config: PlanConfig) -> dict[str, Any]:
    candidate = advice.row.figures.candidate
    given = f"{flags_of(config, ModelConfig)} {flags_of(config, DataConfig)}"
    command = f"cachekd precompute {given} --cache CACHE"
    return {
        "name": candidate.name,
        "why": advice.why,
        "within_limits": advice.within_limits,
        "flags": candidate.flags,
        "command": f"{command} {candidate.flags}".rstrip(),
        "warnings": list(advice.warnings),
    }


__all__ = ["plan"]
