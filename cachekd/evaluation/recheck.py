"""Scoring records of a cache again: do the stored targets come from this teacher?

Comes in: an open cache and the settings of its teacher. Goes out: a report, whose problems are
empty if stored and fresh targets differ by no more than the teacher does between batch shapes. The
identity is compared first; the scores find what no identity can: a row in the wrong place, a
teacher that was loaded otherwise than its settings say, numbers that a device got wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cachekd.capture.identify import public_name
from cachekd.capture.job import selection_of
from cachekd.codecs._grids import Grid
from cachekd.config import RecheckConfig, precompute_config
from cachekd.errors import DataError, MismatchError
from cachekd.evaluation.compare import NOISE_FACTOR, Compared, Triple, compare, plain
from cachekd.evaluation.dense import DenseRows, Rows, dense_rows, joined, take
from cachekd.evaluation.fidelity import fidelity, header_of, references
from cachekd.plugins import find
from cachekd.store.identity import refuse_difference, source_facts, warn_of_difference
from cachekd.store.reader import Cache
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import Selection, Teacher, TeacherFacts
from cachekd.types import Float32, Int64, Record, TopKLogits

_BATCH = 8
_PADDING = 16
_OTHER_ROWS = 0.02
"""Share of rows whose entries may differ by a token at the border, beyond what shapes change."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """A record with its fresh values, and sums over its rows.

    Attributes:
        number: of the sample in the cache.
        triple: stored and fresh values.
        rows: captured rows.
        kl: KL of the dense rows to the stored targets with a flat tail, summed; 0 where sampled.
        other: rows whose entries are not those of a fresh capture, and those that differ between
            two shapes.
    """

    number: int
    triple: Triple
    rows: int
    kl: float
    other: tuple[int, int]


def recheck(
    cache: Cache, config: RecheckConfig, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score a random sample of records again and compare.

    Args:
        cache: the open cache.
        config: its teacher, and how many records.
        progress: called with records done and records in all.

    Returns:
        plain JSON types: counts, the mean KL of fresh dense rows to what is stored, differences by
        quantity, and ``problems``, empty if all of them are noise and rounding.

    Raises:
        DataError: no chosen record has a captured row.
        MismatchError: the teacher is not the cache's; names both sides.
        TeacherError: it cannot be loaded or does not score.
    """
    teacher, context = load_teacher(cache, config, "verify")
    numbers = _numbers(cache, config)
    selection = selection_of(cache.identity)
    scored: list[_Scored] = []
    for start in range(0, len(numbers), _BATCH):
        part = numbers[start : start + _BATCH]
        scored += _score(teacher, selection, part, cache.read(part), context)
        if progress:
            progress(start + len(part), len(numbers))
    if not scored:
        raise DataError(f"{cache.url}: none of the chosen records has targets to compare")
    header = header_of(cache.identity, selection, "packed")
    compared = compare(
        [one.triple for one in scored], find("codecs", header.codec)(header), Grid(header)
    )
    return _report(scored, compared, selection)


def load_teacher(cache: Cache, config: RecheckConfig, door: str) -> tuple[Teacher, int]:
    """The teacher once it is known to be the cache's, and its longest input in tokens.

    Args:
        cache: the open cache.
        config: who the teacher is said to be.
        door: the command that asks, for messages.

    Raises:
        MismatchError: it is another teacher than the cache's; names both sides.
        TeacherError: it cannot be loaded.
    """
    longest = max(2, int(cache.lengths.max(initial=0)))
    settings = precompute_config(config, data=(cache.url,), max_length=longest)
    backend = find("teachers", config.backend)
    facts: TeacherFacts = backend.identify(settings)
    source = source_facts(settings, facts, tokenizer_facts(facts.tokenizer_folder))
    attention = cache.identity.capture["attn_implementation"]
    if "asserted" in cache.identity.source:
        raise MismatchError(
            f"{door}: the teacher of {cache.url} is asserted, not known: it was imported, and its "
            "values cannot be told to be those of any weights"
        )
    refuse_difference(
        door,
        {"source": dict(cache.identity.source), "attn_implementation": attention},
        {"source": source, "attn_implementation": settings.attention_kernel},
        f"the cache {cache.url}",
        f"the teacher {config.teacher}",
    )
    warn_of_difference(
        door,
        cache.identity.provenance,
        {"teacher": public_name(config.teacher), "revision": config.revision},
        f"the cache {cache.url}",
        "this call",
    )
    teacher: Teacher = backend.load(settings, facts, config.threads or os.cpu_count() or 1)
    return teacher, facts.context_length


def _numbers(cache: Cache, config: RecheckConfig) -> list[int]:
    """Random samples of the cache."""
    count = min(config.samples, len(cache))
    chosen = np.random.default_rng(config.seed).choice(len(cache), count, replace=False)
    numbers: list[int] = chosen.tolist()
    return numbers


def _score(
    teacher: Teacher,
    selection: Selection,
    numbers: Sequence[int],
    records: Sequence[Record],
    context: int,
) -> Iterator[_Scored]:
    """Fresh values of a few records: each alone, and all together padded longer."""
    documents = [record.input_ids for record in records]
    wanted = [np.diff(record.logits.offsets) > 0 for record in records]
    lengths = [len(ids) for ids in documents]
    together = min(context, max(lengths) + _PADDING)
    batched: list[list[TopKLogits]] = [[] for _ in records]
    for tile in _dense(teacher, selection, documents, together, wanted):
        batched[tile.document].append(_fresh(tile, records[tile.document].logits))
    shape = teacher.score(documents, together, selection, wanted)
    for place, record in enumerate(records):
        own, rows = [documents[place]], wanted[place]
        if not rows.any():
            continue
        alone, kl = [], 0.0
        for tile in _dense(teacher, selection, own, lengths[place], [rows]):
            alone.append(_fresh(tile, record.logits))
            if record.logits.weights is None:
                stored = take(record.logits, tile.rows)
                kl += float(fidelity(references(tile), stored, None)["kl_flat"].sum())
        capture = teacher.score(own, lengths[place], selection, [rows])[0]
        yield _Scored(
            number=numbers[place],
            triple=Triple(
                stored=record.logits,
                alone=joined(alone, rows),
                batched=joined(batched[place], rows),
            ),
            rows=int(rows.sum()),
            kl=kl,
            other=(_other_rows(record.logits, capture), _other_rows(shape[place], capture)),
        )


def _dense(
    teacher: Teacher,
    selection: Selection,
    documents: Sequence[np.ndarray],
    padded_length: int,
    wanted: Sequence[Rows],
) -> Iterator[DenseRows]:
    return dense_rows(
        teacher,
        documents,
        padded_length,
        vocab_size=selection.vocab_size,
        temperatures=selection.temperatures,
        wanted=wanted,
        best=1,
    )


def _fresh(tile: DenseRows, stored: TopKLogits) -> TopKLogits:
    """Fresh values of the stored entries of a tile's rows; weights of draws stay as they are."""
    part = take(stored, tile.rows)
    counts = np.diff(part.offsets)
    row_n = np.repeat(np.arange(len(counts)), counts)
    head = np.ones(len(row_n), bool) if part.weights is None else part.weights == 0
    logs = np.log(np.maximum(tile.p_NV[row_n, part.ids], 1e-38)).astype(np.float32)
    return replace(
        part,
        logprobs=np.where(head, logs, part.logprobs),
        tail=_log_rest(tile, row_n[head], part.ids[head]),
        next_logprob=tile.next_logprob,
        entropy=tile.entropy,
        lognorm={t: tile.lognorm[t] for t in part.lognorm},
    )


def _log_rest(tile: DenseRows, row_n: np.ndarray, ids_n: np.ndarray) -> Float32:
    """Log mass outside these entries, summed over the rest itself: 1 - head would cancel."""
    rest_NV = tile.p_NV.copy()
    rest_NV[row_n, ids_n] = 0
    with np.errstate(divide="ignore"):
        logs: Float32 = np.log(rest_NV.sum(1)).astype(np.float32)
    return logs


def _other_rows(left: TopKLogits, right: TopKLogits) -> int:
    """Rows whose entries are not the same tokens."""
    here, there = map(_row_tokens, (left, right))
    return len(np.unique(np.setxor1d(here, there) // left.vocab_size))


def _row_tokens(targets: TopKLogits) -> Int64:
    """A number for each entry that names its row and token, int64 [n]."""
    row_n = np.repeat(np.arange(targets.rows), np.diff(targets.offsets))
    return (row_n * targets.vocab_size + targets.ids).astype(np.int64)


def _report(
    scored: Sequence[_Scored], compared: Sequence[Compared], selection: Selection
) -> dict[str, Any]:
    rows = sum(one.rows for one in scored)
    stored, noise = (sum(one.other[side] for one in scored) for side in (0, 1))
    problems = [
        f"{one.name} are not this teacher's: they differ by up to {one.largest:.3g} nats "
        f"(mean {one.mean:.3g}), batch shapes by up to {one.noise_largest:.3g} "
        f"(mean {one.noise_mean:.3g}); worst in sample {scored[one.worst].number}"
        for one in compared
        if not one.good
    ]
    if stored > NOISE_FACTOR * noise + _OTHER_ROWS * rows:
        problems.append(
            f"{stored} of {rows} rows hold other tokens than this teacher's capture; between batch "
            f"shapes {noise} do"
        )
    exact = not (selection.samples or selection.tau)
    return {
        "records_scored": len(scored),
        "rows_scored": rows,
        "rows_with_other_entries": stored,
        "rows_with_other_entries_between_shapes": noise,
        **({"kl_dense_to_stored": sum(one.kl for one in scored) / rows} if exact else {}),
        "differences": plain(compared),
        "problems": problems,
    }
