"""A made-up teacher for tests, documents and trial runs: no weights, same numbers everywhere.

Row t depends on ``input_ids[: t + 1]`` through a running hash, so a shifted or shuffled capture
does not equal the right one. ``--teacher`` names its folder (configuration and tokenizer only).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig, ScoringConfig
from cachekd.data.attention import MEAN, AttentionSpec
from cachekd.data.models import context_length, end_tokens, model_config, resolve_model
from cachekd.teachers import LayerSink, PromptDraw, Selection, TeacherFacts, WritingSpec
from cachekd.types import Float32, Int32, Int64, TopKLogits

_DEFAULT_CONTEXT = 4096
_PRIME = 1099511628211
_TILE_LOGITS = 1 << 18  # selected at once: a call for each short document costs more than its rows


def dummy_logits(input_ids: Int32, vocab_size: int) -> Float32:
    """Logits of every position, float32 [L, V]: a pure function of the tokens so far."""
    return state_logits(dummy_states(input_ids), vocab_size)


def dummy_states(input_ids: Int32) -> NDArray[np.uint64]:
    """A running hash of the tokens up to each position, uint64 [L]."""
    states = np.zeros(len(input_ids), dtype=np.uint64)
    state = 1469598103934665603
    for t, token in enumerate(input_ids.tolist()):
        state = ((state ^ (token + 1)) * _PRIME) % (1 << 64)
        states[t] = state
    return states


def state_logits(states_N: NDArray[np.uint64], vocab_size: int) -> Float32:
    """Logits of positions with these states, float32 [N, V]."""
    phase_NV = (states_N[:, None] >> np.uint64(20)).astype(np.float64) % 9973.0 + np.arange(
        1, vocab_size + 1
    ) * ((states_N[:, None] >> np.uint64(7)).astype(np.float64) % 7919.0)
    return (4.0 * np.sin(phase_NV)).astype(np.float32)


def dummy_queries(input_ids: Int32, heads: int, width: int, layer: int) -> Float32:
    """Queries or keys of every position but the last, float32 [heads, L-1, width]."""
    length = len(input_ids) - 1
    phase_L = (input_ids[:-1].astype(np.float64) + 1) * (np.arange(length) + 7 * layer + 3)
    step_HD = np.arange(1, heads * width + 1).reshape(heads, 1, width) * 0.37
    return np.sin(phase_L[None, :, None] * step_HD).astype(np.float32)


def dummy_maps(q_HLD: Float32, k_GLD: Float32) -> Float32:
    """Causal attention maps of queries and grouped keys, float32 [H, L-1, L-1]."""
    k_HLD = np.repeat(k_GLD, len(q_HLD) // len(k_GLD), axis=0)
    scores_HLL = q_HLD @ k_HLD.transpose(0, 2, 1)
    causal_LL = np.tril(np.ones(scores_HLL.shape[1:], dtype=bool))
    weights_HLL = np.where(causal_LL, np.exp(scores_HLL), 0)
    maps_HLL: Float32 = (weights_HLL / weights_HLL.sum(axis=-1, keepdims=True)).astype(np.float32)
    return maps_HLL


def _parts(masks: Sequence[NDArray[np.bool_]], rows: int) -> Iterator[slice]:
    """Consecutive documents that hold together at most so many rows; a longer one goes alone."""
    first = held = 0
    for place, mask in enumerate(masks):
        if place > first and held + len(mask) > rows:
            yield slice(first, place)
            first, held = place, 0
        held += len(mask)
    if masks:
        yield slice(first, len(masks))


class DummyTeacher:
    """Scores documents with `dummy_logits`, and attends with `dummy_queries`."""

    def __init__(self) -> None:
        self._tap: tuple[AttentionSpec, Sequence[NDArray[np.bool_]], LayerSink] | None = None

    @staticmethod
    def identify(config: PrecomputeConfig | ScoringConfig) -> TeacherFacts:
        """Read the folder's configuration."""
        folder = resolve_model(config.teacher, config.revision, weights=False)
        settings = model_config(folder)
        return TeacherFacts(
            folder=folder,
            weights="dummy",
            adapter=None,
            code=None,
            tokenizer_folder=resolve_model(config.tokenizer) if config.tokenizer else folder,
            adapter_folder=None,
            config=settings,
            dtype="float32",
            context_length=context_length(settings) or _DEFAULT_CONTEXT,
            end_tokens=end_tokens(folder, settings),
        )

    @staticmethod
    def load(
        config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts, threads: int
    ) -> DummyTeacher:
        """Nothing to load."""
        return DummyTeacher()

    @property
    def numerics(self) -> Mapping[str, Any]:
        """The numbers depend on nothing but the tokens."""
        return {"device": "none"}

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`."""
        import torch

        from cachekd.teachers._assembly import assemble, select
        from cachekd.teachers._given import given_rows
        from cachekd.teachers._sampling import uniforms

        if self._tap is not None:
            self._attend(documents, *self._tap)
        masks = [
            np.ones(len(ids_L) - 1, dtype=bool) if rows is None else rows
            for ids_L, rows in zip(documents, wanted, strict=True)
        ]
        tiles = []
        for part in _parts(masks, max(1, _TILE_LOGITS // selection.vocab_size)):
            own = list(zip(documents[part], masks[part], strict=True))
            states_N = np.concatenate([dummy_states(ids_L)[:-1][mask] for ids_L, mask in own])
            next_N = np.concatenate([ids_L[1:][mask] for ids_L, mask in own]).astype(np.int64)
            logits_NV = torch.from_numpy(state_logits(states_N, selection.vocab_size))
            drawn = uniforms(selection, documents[part], masks[part])
            uniform_N = None if drawn is None else torch.from_numpy(drawn)
            ids_NJ = None if given is None else given_rows(given[part], masks[part], selection)
            given_NJ = None if ids_NJ is None else torch.from_numpy(ids_NJ)
            next_ids_N = torch.from_numpy(next_N)
            tiles.append(select(logits_NV, next_ids_N, selection, uniform_N, given_NJ))
        return assemble(tiles, masks, selection)

    def write(self, prompts: Sequence[PromptDraw], spec: WritingSpec) -> list[Int32]:
        """See `cachekd.teachers.WritingTeacher.write`."""
        import torch

        from cachekd.teachers._writing import finished, next_tokens, stream_seeds

        seeds_B = stream_seeds(prompts, spec.seed)
        states_B = np.array([dummy_states(prompt.input_ids)[-1] for prompt in prompts])
        ended_B = np.zeros(len(prompts), dtype=bool)
        steps: list[Int64] = []
        while len(steps) < spec.max_new_tokens and not ended_B.all():
            logits_BV = torch.from_numpy(state_logits(states_B, spec.vocab_size))
            steps.append(next_tokens(logits_BV, seeds_B, len(steps), spec).numpy())
            states_B = (states_B ^ (steps[-1] + 1).astype(np.uint64)) * np.uint64(_PRIME)
            ended_B |= np.isin(steps[-1], spec.end_tokens)
        return [finished(row, spec) for row in np.stack(steps, axis=1).tolist()]

    @contextmanager
    def attention(
        self, spec: AttentionSpec, rows: Sequence[NDArray[np.bool_]], sink: LayerSink
    ) -> Iterator[None]:
        """See `cachekd.teachers.AttentiveTeacher.attention`."""
        self._tap = (spec, rows, sink)
        try:
            yield
        finally:
            self._tap = None

    @staticmethod
    def _attend(
        documents: Sequence[Int32],
        spec: AttentionSpec,
        rows: Sequence[NDArray[np.bool_]],
        sink: LayerSink,
    ) -> None:
        for document, (ids_L, wanted) in enumerate(zip(documents, rows, strict=True)):
            for place, layer in enumerate(spec.layers):
                q_HLD = dummy_queries(ids_L, spec.teacher_heads, spec.head_width, 2 * layer)
                k_GLD = dummy_queries(ids_L, spec.key_heads, spec.head_width, 2 * layer + 1)
                heads = list(spec.heads)
                if spec.kind == "qk":
                    keys = k_GLD[list(spec.stored_key_heads)]
                    sink(document, place, (q_HLD[heads][:, wanted], keys))
                    continue
                maps_HRL = dummy_maps(q_HLD, k_GLD)[:, wanted]
                mean = spec.heads == (MEAN,)
                kept = maps_HRL.mean(axis=0, keepdims=True) if mean else maps_HRL[heads]
                sink(document, place, (kept,))


PLUGIN = DummyTeacher
