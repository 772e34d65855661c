"""Teachers: token sequences to sparse targets. The file name is the name of the backend.

A teacher module has ``PLUGIN``, a class with the protocol `TeacherBackend`: it says who the
teacher is without loading it (so that every check comes before the first byte of a model), and
loads it. The loaded teacher has one verb, `Teacher.score`. Rows follow the alignment law of
`cachekd.types`: a backend whose engine scores token t instead of t+1 shifts inside itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig, ScoringConfig
from cachekd.data.attention import AttentionSpec
from cachekd.types import Float32, Int32, TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """Who a teacher is, known before it is loaded.

    Attributes:
        folder: where its configuration and weights lie.
        weights: digest of the weights.
        adapter: digest and settings of an adapter, or None.
        code: digest of the model's own code where it is run, else None.
        tokenizer_folder: where its tokenizer lies.
        config: its ``config.json``.
        dtype: dtype it will be loaded in.
        context_length: longest input in tokens.
        end_tokens: ids that end what it writes, as its configuration says.
        inexact: columns of its targets that are not what their name says, each with what they are.
    """

    folder: Path
    weights: str
    adapter: Mapping[str, Any] | None
    code: str | None
    tokenizer_folder: Path
    adapter_folder: Path | None
    config: Mapping[str, Any]
    dtype: str
    context_length: int
    end_tokens: tuple[int, ...] = ()
    inexact: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is kept of each row.

    The head is exact: at most k entries, up to mass p, at least min_k, none below ``min_prob``
    (but the best one is always kept). What is outside of it may be sampled, without bias.

    Attributes:
        k, p, min_k: see above; k = 0 keeps no head at all.
        min_prob: smallest probability of a head entry.
        tau: above 0, a head entry has at least this probability, and every other token v is kept
            with probability min(1, p_v / tau), with weight max(p_v, tau).
        samples: above 0 (with k = 0), draws from the whole distribution: a token drawn c times is
            kept with weight c / samples.
        seed: draws are a function of this, of the document's token ids and of the row alone.
        vocab_size: real vocabulary V; logits are normalised over it, padding is cut off.
        temperatures: temperatures other than 1 whose log-normaliser is computed.
        skip_bad: rows that are no distribution (NaN, +inf, nothing but -inf) get an empty support;
            else they are an error.
    """

    k: int
    p: float
    min_k: int
    vocab_size: int
    temperatures: tuple[float, ...]
    min_prob: float = 0.0
    tau: float = 0.0
    samples: int = 0
    seed: int = 0
    skip_bad: bool = False


class Teacher(Protocol):
    """A loaded teacher."""

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """Targets of a batch of documents.

        Args:
            documents: token ids of each, int32 [L].
            padded_length: length every document is padded to: the same shape, the same numbers.
            selection: what is kept.
            wanted: for each document the rows to capture, bool [L-1], or None for all.
            given: for each document token ids [R, J] of its R captured rows, or None: they are kept
                with the head of their row, whatever their probability unless it is 0; ids may be
                repeated, and may be of the head. Entries of both are in order of probability, and
                the tail is outside both. Not with a selection that samples.

        Raises:
            ConfigError: given ids beside a selection that samples, or of another shape.
            BadTargets: rows are NaN or infinite, and the selection does not skip them.
            TeacherError: the numbers are not those of these documents.
            MemoryError: out of memory (whatever the device calls it).
        """

    @property
    def numerics(self) -> Mapping[str, Any]:
        """What the numbers depend on beside identity: device, versions."""


LayerSink = Callable[[int, int, tuple[Float32, ...]], None]
"""Told of each document and layer (their places in batch and spec) what the teacher attended to.

Maps: one array [H, R, L-1]. qk: queries [H, R, D] and keys [G, L-1, D] of the stored heads, after
RoPE, each with the root of the scaling folded in.
"""


@runtime_checkable
class AttentiveTeacher(Teacher, Protocol):
    """A teacher that can tell its attention."""

    def attention(
        self, spec: AttentionSpec, rows: Sequence[NDArray[np.bool_]], sink: LayerSink
    ) -> AbstractContextManager[None]:
        """Within, one call of `score` gives the attention of its documents to ``sink``.

        Args:
            spec: layers, heads and kind.
            rows: for each document the query rows, bool [L-1].
            sink: called layer by layer, so that maps of two layers never exist at once.

        Raises:
            TeacherError: a layer gives no attention, or not what ``spec`` can hold.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingSpec:
    """How responses are written.

    Attributes:
        greedy: take the most probable token; else draw.
        max_new_tokens: most tokens of a response, its end token among them.
        temperature, top_k, top_p: what is drawn from, as transformers define it; 1, 0 and 1: the
            teacher's distribution itself.
        seed: draws are a function of this, of the prompt's token ids and of the number alone.
        end_tokens: a response ends with the first of these.
        vocab_size: real vocabulary V; no token beyond it is written.
    """

    greedy: bool
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    end_tokens: tuple[int, ...]
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptDraw:
    """A prompt, token ids int32 [L], and which of the responses to it is to be written."""

    input_ids: Int32
    number: int


@runtime_checkable
class WritingTeacher(Teacher, Protocol):
    """A teacher that can write. Its plugin has ``write`` too, so that this is known early."""

    def write(self, prompts: Sequence[PromptDraw], spec: WritingSpec) -> list[Int32]:
        """The response to each prompt, int32: at least one token, the end token with it.

        Args:
            prompts: of at least one token each.
            spec: how.

        Raises:
            TeacherError: its numbers are NaN or infinite.
            MemoryError: out of memory (whatever the device calls it).
        """


class TeacherBackend(Protocol):
    """What a teacher plugin offers."""

    @staticmethod
    def identify(config: PrecomputeConfig | ScoringConfig) -> TeacherFacts:
        """Find the teacher without loading it.

        Raises:
            TeacherError: no such model, tokenizer or adapter.
        """

    @staticmethod
    def load(
        config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts, threads: int
    ) -> Teacher:
        """Load it.

        Raises:
            TeacherError: it cannot be loaded as configured.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConfig:
    """Where a teacher in another process is, and what it must be.

    Attributes:
        url: of its server.
        token: what the server asks for, or None.
        timeout: seconds that one request may take.
        patience: seconds that a server which does not answer is asked again.
        tokenizer: digest of the student's tokenizer, which must be the teacher's.
        vocab_size: real vocabulary.
    """

    url: str
    token: str | None = field(repr=False)
    timeout: float
    patience: float
    tokenizer: str
    vocab_size: int


class RemoteTeacher(Teacher, Protocol):
    """A teacher that is reached and not loaded."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Who it is, as the facts that a source id is a digest of; asked for once, at the start."""

    @property
    def context_length(self) -> int:
        """Longest document in tokens."""


class RemoteBackend(Protocol):
    """What a plugin offers that reaches a teacher."""

    @staticmethod
    def connect(config: RemoteConfig) -> RemoteTeacher:
        """Ask the server who it is.

        Raises:
            TeacherError: it does not answer, or is no such server.
            MismatchError: its tokenizer is not the student's; names both.
        """
