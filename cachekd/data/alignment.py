"""Which rows are trained: the one place of the project that maps tokens to rows.

In: the role of each token, where the completion begins, and what the user wants to train on.
Out: a mask over the L-1 rows of a document. Row t predicts token t+1 (alignment law, see
`cachekd.types`), so a row is trained exactly when its target token is. Capture, losses and metrics
all come here; nothing else shifts by one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cachekd.types import Int32, Int64, Role, UInt8


class LossMask(StrEnum):
    """Which tokens are trained.

    ``AUTO``: completions where there is a prompt, else assistant turns, else every token.
    """

    AUTO = "auto"
    COMPLETION = "completion"
    ASSISTANT = "assistant"
    ALL = "all"


def trained_rows(roles: UInt8, prompt_length: int | None, mode: LossMask) -> NDArray[np.bool_]:
    """The rows whose target token is trained.

    A `Role.TEMPLATE` token is trained only under ``ALL``. ``COMPLETION`` on a document without a
    prompt takes its assistant tokens, which may be none.

    Args:
        roles: a `Role` for each token, [L].
        prompt_length: tokens before the completion, or None without such a border.
        mode: what is trained.

    Returns:
        bool [L-1]: True at row t if token t+1 is trained.
    """
    targets = roles[1:]
    if mode is LossMask.ALL:
        return np.ones(len(targets), dtype=np.bool_)
    assistant: NDArray[np.bool_] = targets == Role.ASSISTANT
    if mode is LossMask.ASSISTANT:
        return assistant
    written: NDArray[np.bool_] = targets != Role.TEMPLATE
    if prompt_length is not None:
        return written & (np.arange(1, len(targets) + 1) >= prompt_length)
    if mode is LossMask.AUTO and not assistant.any():
        return written
    return assistant


class Spans(Protocol):
    """Runs of tokens of one role: S spans of P samples."""

    @property
    def span_offsets(self) -> Int64:
        """Sample i has the spans from ``span_offsets[i]`` to ``span_offsets[i + 1]``, [P+1]."""
        ...

    @property
    def span_roles(self) -> UInt8:
        """A `Role` for each span, [S]."""
        ...

    @property
    def span_ends(self) -> Int32:
        """The token after the last of each span, [S]."""
        ...

    @property
    def prompt_lengths(self) -> Int32:
        """Tokens before the completion, [P]; -1 without such a border."""
        ...


def trained_spans(samples: Spans, mode: LossMask) -> tuple[Int64, Int64]:
    """`trained_rows` of many samples at once: the trained tokens of each span, [S] and [S].

    Args:
        samples: each with at least one span; -1 is the prompt length of one without prompt.
        mode: what is trained.

    Returns:
        The first trained token of each span and the one after its last; equal where none is.
    """
    owner_S = np.repeat(np.arange(len(samples.prompt_lengths)), np.diff(samples.span_offsets))
    ends_S = samples.span_ends.astype(np.int64)
    starts_S = np.concatenate([[0], ends_S[:-1]])
    starts_S[samples.span_offsets[:-1]] = 0
    starts_S = np.maximum(starts_S, 1)  # the first token of a document has no row
    assistant_S = (samples.span_roles == Role.ASSISTANT) & (ends_S > starts_S)
    if mode is LossMask.ALL:
        kept_S = np.ones_like(assistant_S)
    elif mode is LossMask.ASSISTANT:
        kept_S = assistant_S
    else:
        prompts_S = samples.prompt_lengths[owner_S]
        written_S = samples.span_roles != Role.TEMPLATE
        starts_S = np.maximum(starts_S, prompts_S)
        kept_S = np.where(prompts_S >= 0, written_S, assistant_S)
        if mode is LossMask.AUTO:
            silent_P = np.bincount(owner_S, assistant_S, len(samples.prompt_lengths)) == 0
            kept_S |= written_S & silent_P[owner_S] & (prompts_S < 0)
    return starts_S, np.where(kept_S, np.maximum(ends_S, starts_S), starts_S)


def response_rows(prompt_length: int, response_length: int) -> range:
    """The rows that predict a response of n tokens after a prompt of P tokens: P-1 .. P+n-2.

    The first token of a document has no row, so an empty prompt leaves n-1 rows.

    Args:
        prompt_length: P, 0 or more.
        response_length: n, with its EOS if it has one.
    """
    return range(max(prompt_length - 1, 0), max(prompt_length + response_length - 1, 0))


def response_starts(samples: Spans) -> Int64:
    """Tokens before the response that each sample ends with, [P]; -1 where nothing asks for one.

    With a border between prompt and completion that border; of a conversation without one, where
    its last assistant turn begins. A prompt has at least one token, a response as well.

    Args:
        samples: each with at least one span.
    """
    firsts_P, stops_P = samples.span_offsets[:-1], samples.span_offsets[1:]
    ends_S = samples.span_ends.astype(np.int64)
    starts_S = np.concatenate([[0], ends_S[:-1]])
    starts_S[firsts_P] = 0
    answers_S = np.where(samples.span_roles == Role.ASSISTANT, starts_S, -1)
    last_P = np.maximum.reduceat(answers_S, firsts_P)
    border_P = samples.prompt_lengths.astype(np.int64)
    found_P = np.where(border_P >= 0, border_P, last_P)
    usable_P = (found_P > 0) & (found_P < ends_S[stops_P - 1])
    return np.where(usable_P, found_P, -1)
