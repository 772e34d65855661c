"""``cachekd evaluate``: what students write, and how close they are to their teacher.

In: an `EvaluateConfig`. Out: a report of plain JSON types, and pages if asked for. Models are
loaded one after the other; all that can be wrong is looked for before the first.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.config import EvaluateConfig, resolved
from cachekd.errors import StoreError, TeacherError
from cachekd.evaluation.calibration import calibration
from cachekd.evaluation.examples import Examples
from cachekd.evaluation.exposure import exposure
from cachekd.evaluation.figures import Figure, figure, gap
from cachekd.evaluation.gold import gold_figures
from cachekd.evaluation.heldout import heldout_kl
from cachekd.evaluation.models import load
from cachekd.evaluation.notes import notes_of
from cachekd.evaluation.page import write_report
from cachekd.evaluation.ready import Candidate, Ready, ready
from cachekd.evaluation.scores import Side
from cachekd.evaluation.tables import markdown
from cachekd.evaluation.texts import Progress, Run, end_tokens, text_figures, write_runs
from cachekd.evaluation.written import Row, write_rows, written_rows
from cachekd.report.files import check_writable, write_whole
from cachekd.teachers._memory import release
from cachekd.training.bars import quiet_bars
from cachekd.training.record import cache_facts, versions

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

OUTPUTS = ("out", "markdown", "responses")


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate models on prompts with references.

    Args:
        config: see `EvaluateConfig`.
        progress: called with what is done, how much of it is, and of how much (0: it has no
            count).

    Returns:
        ``models``: for each, in the order given, ``metrics`` (see `cachekd.evaluation.figures`:
        mean, deviation, values, why), ``exaccerr`` curves, ``reliability`` bins, who it is, counts,
        seconds, and in ``failed`` why some of it is missing, or None; ``settings``, ``data``,
        ``teacher``, ``cache``, ``notes`` (what a reader should know) and ``versions``. What was not
        asked for is not there; what could not be measured is None with the reason.

    Raises:
        CachekdError: whatever is wrong with settings, data, teacher, or all of the models.
    """
    told: Progress = progress or (lambda stage, done, total: None)
    for option in OUTPUTS:
        if getattr(config, option):
            check_writable(Path(getattr(config, option)), option)
    made = ready(config)
    with redirect_stdout(sys.stderr), quiet_bars(own=progress is not None):
        teacher = _Teacher(made, config, told) if made.teacher else None
        models = [_evaluated(one, made, teacher, config, told) for one in made.candidates]
    _mark_gaps(models)
    written = [row for model in models for row in model.pop("written")]
    report = {
        "models": models,
        "settings": {**resolved(config), **asdict(config.protocol)},
        "data": _data_facts(made.examples),
        "teacher": made.teacher.plain() if made.teacher else None,
        "cache": _cache_facts(made.cache) if made.cache else None,
        "notes": notes_of(made, config),
        "versions": {**versions(), "rouge-score": importlib.metadata.version("rouge-score")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    _write(config, plain, written)
    return plain


def _write(config: EvaluateConfig, report: Mapping[str, Any], written: Sequence[Row]) -> None:
    """The pages that are asked for, and the responses."""
    try:
        if config.responses:
            write_rows(Path(config.responses), written)
        if config.markdown:
            write_whole(Path(config.markdown), markdown(report).encode("utf-8", "replace"))
        if config.out:
            write_report(Path(config.out), report)
    except OSError as error:
        raise StoreError(f"the result cannot be written: {error}") from error


class _Teacher:
    """The live teacher, and what it wrote: once for all models with the same prompts and ends."""

    def __init__(self, made: Ready, config: EvaluateConfig, told: Progress) -> None:
        assert made.teacher is not None, "a teacher was named"
        self._found, self._config, self._told = made.teacher, config, told
        told(f"{self._found.name}: loading", 0, 0)
        model = load(self._found)
        self.side = Side.of(self._found.who, model, self._found.tokenizer.vocab_size)
        self._runs: dict[tuple[Any, ...], list[Run]] = {}

    def runs(self, candidate: Candidate) -> list[Run]:
        """What it writes to the prompts of a model, where its text ends as that model's may."""
        ends = end_tokens(self._found, candidate.tokenizer, candidate.tokens)
        key = (ends, *(item.prompt.tobytes() for item in candidate.tokens))
        if key not in self._runs:
            self._runs[key] = write_runs(
                self._found, self.side.model, candidate.tokens, ends, self._config, self._told
            )
        return self._runs[key]


def _evaluated(
    one: Candidate, made: Ready, teacher: _Teacher | None, config: EvaluateConfig, told: Progress
) -> dict[str, Any]:
    """Load a model, measure it, and let it go; what it has until it fails is kept."""
    begun = time.monotonic()
    found: dict[str, Any] = {
        **one.found.plain(),
        "end_tokens": list(end_tokens(one.found, one.tokenizer, one.tokens)),
        "prompts_cut": sum(item.prompt_cut for item in one.tokens),
        "responses_cut": sum(item.response_cut for item in one.tokens),
        "failed": None,
        "metrics": {},
        "written": [],
    }
    # The errors are not kept: they hold the model.
    try:
        _measure(found, one, made, teacher, config, told)
    except TeacherError as error:
        found["failed"] = str(error)
    except MemoryError as error:
        found["failed"] = (
            f"{one.found.who} ({one.found.path}): out of memory for a single example: "
            f"{error}. Shorten it with --max-prompt-length or --max-new-tokens, use a smaller "
            "--dtype, or put the teacher elsewhere with --teacher-device"
        )
    release()
    return {**found, "seconds": round(time.monotonic() - begun, 3)}


def _mark_gaps(models: Sequence[dict[str, Any]]) -> None:
    """Give models that failed a gap for all that they lack of the others' metrics.

    Raises:
        TeacherError: all failed; says why the first did.
    """
    whole = [model for model in models if model["failed"] is None]
    if not whole:
        raise TeacherError(models[0]["failed"])
    names = dict.fromkeys(name for model in whole for name in model["metrics"])
    for model in models:
        if model["failed"] is not None:
            model["metrics"] = {name: gap(model["failed"]) for name in names} | model["metrics"]


def _measure(
    found: dict[str, Any],
    one: Candidate,
    made: Ready,
    teacher: _Teacher | None,
    config: EvaluateConfig,
    told: Progress,
) -> None:
    """Load a model, and add everything that was asked for to what is found of it."""
    name, metrics, budget = one.found.name, found["metrics"], config.batch_tokens
    told(f"{name}: loading", 0, 0)
    model = load(one.found)
    found["parameters"] = sum(p.numel() for p in model.parameters())
    side = Side.of(one.found.who, model, one.found.tokenizer.vocab_size)
    other = teacher.side if teacher else None
    metrics |= gold_figures(
        side, other, one.tokens, budget, lambda done: told(f"{name}: loss", done, len(one.tokens))
    )
    runs = write_runs(one.found, model, one.tokens, tuple(found["end_tokens"]), config, told)
    references = [item.references for item in made.examples.items]
    metrics |= text_figures(runs, one.tokens, references, one.tokenizer)
    if config.responses:
        found["written"] = _responses(one, made, runs)
    if teacher is not None:
        figures, found["exaccerr"] = exposure(
            side,
            teacher.side,
            [item.prompt for item in one.tokens],
            (runs, teacher.runs(one)),
            [n for n in config.exaccerr_lengths if n <= config.max_new_tokens],
            budget,
            partial(told, f"{name}: ExAccErr"),
        )
        metrics |= figures
    if made.cache is not None:
        told(f"{name}: KL to the cache", 0, 0)
        metrics |= _from_cache(one, model, made.cache, config)
    if config.label_words:
        labels = [item.label for item in made.examples.items if item.label is not None]
        figures, found["reliability"] = calibration(
            side, one.tokens, labels, budget, partial(told, f"{name}: labels")
        )
        metrics |= figures


def _responses(one: Candidate, made: Ready, runs: Sequence[Run]) -> list[Row]:
    return list(written_rows(one.found.name, runs, one.tokens, made.examples.items, one.tokenizer))


def _from_cache(
    one: Candidate, model: Any, cache: Cache, config: EvaluateConfig
) -> Mapping[str, Figure]:
    """Forward KL with a tail bucket on the cache's own samples."""
    found = heldout_kl(model, cache, max_length=one.found.context, batch_tokens=config.batch_tokens)
    return {
        "cache_forward_kl": figure(
            [found.kl], rows=[found.rows], cut=[found.cut], left_out=[found.left_out]
        ),
        "cache_loss_token_mean": figure([found.ce]),
        "cache_tail_mass": figure([found.tail_mass]),
    }


def _cache_facts(cache: Cache) -> dict[str, Any]:
    return {**cache_facts(cache), "selection": cache.identity.capture["selection"]}


def _data_facts(examples: Examples) -> dict[str, Any]:
    return {
        "examples": len(examples.items),
        "references": sum(len(item.references) for item in examples.items),
        "skipped": dict(examples.skipped),
    }
