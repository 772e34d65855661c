"""Phrases of what is trained: text to phrases, and phrases to rows.

In: token ids, which rows are trained, a tokenizer and a chunker (`cachekd.chunkers`). Out: for each
trained row the phrase that its token belongs to, and what a pair of neighbours counts in a loss.
Trained tokens that follow each other, special tokens left out, are one text; so no phrase crosses
a turn, a gap or a document, and what was cut off or masked is not looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cachekd.chunkers import Chunker, build_chunker
from cachekd.errors import ConfigError
from cachekd.types import Float32, Int32, Int64

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PARTIAL = "\ufffd"
"""What a decoder gives for bytes that are no whole character."""


class SpanFinder:
    """Phrases of a document's trained tokens. It works in loader workers.

    Args:
        tokenizer: what the token ids mean.
        chunker: name of a chunker.

    Raises:
        ConfigError: there is no such chunker, or it cannot be used here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chunker: str) -> None:
        self._tokenizer, self._name = tokenizer, chunker
        self._chunker: Chunker = build_chunker(chunker)
        added = tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        self._special = np.array(sorted(special | set(tokenizer.all_special_ids)), np.int64)

    def __call__(self, input_ids: Int32, trained: Int64) -> Int64:
        """Number of the phrase of each trained row's token, from 0; -1 outside phrases.

        Args:
            input_ids: of one document, [L].
            trained: its trained rows, ascending, [R].
        """
        span_R = np.full(len(trained), -1, np.int64)
        ids_R = input_ids[trained + 1].astype(np.int64)
        plain = np.flatnonzero(~np.isin(ids_R, self._special))
        breaks = np.flatnonzero(np.diff(trained[plain]) != 1) + 1
        found = 0
        for run in np.split(plain, breaks):
            own = self._of_text(ids_R[run].tolist())
            numbers = np.unique(own[own >= 0], return_inverse=True)[1]
            span_R[run[own >= 0]] = numbers + found
            found = int(span_R.max(initial=-1)) + 1
        return span_R

    def _of_text(self, ids: list[int]) -> Int64:
        """Number of the chunker's span that each token belongs to, or -1."""
        text, starts = text_of(self._decode, ids)
        spans = self._chunker.spans(text)
        _check(spans, len(text), self._name)
        firsts, own = [start for start, _ in spans], []
        for start, end in pairwise([*starts, len(text)]):
            place = _first_visible(text, start, max(end, start + 1))
            number = bisect_right(firsts, place) - 1
            own.append(number if number >= 0 and place < spans[number][1] else -1)
        return np.array(own, np.int64)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def span_finder(tokenizer: PreTrainedTokenizerBase, chunker: str | None) -> SpanFinder | None:
    """A finder where an objective wants one."""
    return None if chunker is None else SpanFinder(tokenizer, chunker)


def text_of(decode: Callable[[list[int]], str], ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of tokens, and the number of the character that each begins in.

    Tokens are decoded with those before them, as far back as the last border of a character: a
    token may depend on its neighbour (a leading space), or be a part of a character. Parts of one
    character all begin in it.
    """
    text, context, starts = "", "", []
    known = pending = whole = 0  # the context is ids[known:pending]; not yet in the text: the rest
    for end, _ in enumerate(ids, start=1):
        starts.append(len(text) + whole)
        piece = decode(list(ids[known:end]))[len(context) :]
        whole = len(piece.rstrip(_PARTIAL))
        if end == len(ids) or whole == len(piece):
            text += piece
            known, pending, whole = pending, end, 0
            context = decode(list(ids[known:pending]))
    return text, starts


def span_factors(spans: Sequence[Int64], weights_N: Float32) -> tuple[Int64, Float32]:
    """Numbers of phrases that are unique in a batch, and what a pair of neighbours counts.

    A pair in phrase s of sample x counts w_x T_x / (n_s |s|), with the sample's row weight w_x, its
    trained rows T_x, its phrases n_s and the rows |s| of the phrase: a sum of such pairs, divided
    by the sum of all row weights, is the mean of the samples' span losses, weighed like their rows.

    Args:
        spans: numbers of phrases of each sample's rows, from 0, -1 outside.
        weights_N: weights of all rows.

    Returns:
        Numbers [N], and factors [N]: 0 on a row that begins no pair.
    """
    numbers, factors = [], []
    before = at = 0
    for span_R in spans:
        sizes = np.bincount(span_R[span_R >= 0])
        begins_R = np.zeros(len(span_R), np.bool_)
        begins_R[:-1] = (span_R[1:] == span_R[:-1]) & (span_R[:-1] >= 0)
        factor_R = np.zeros(len(span_R), np.float32)
        counted = max(len(sizes), 1) * sizes[span_R[begins_R]]
        factor_R[begins_R] = weights_N[at : at + len(span_R)][begins_R] * len(span_R) / counted
        numbers.append(np.where(span_R >= 0, span_R + before, -1))
        factors.append(factor_R)
        before, at = before + len(sizes), at + len(span_R)
    return np.concatenate(numbers), np.concatenate(factors)


def _first_visible(text: str, start: int, end: int) -> int:
    """Place of the first character that is no space; of the first where all are spaces."""
    return next((at for at in range(start, min(end, len(text))) if not text[at].isspace()), start)


def _check(spans: Sequence[tuple[int, int]], length: int, chunker: str) -> None:
    borders = [border for span in spans for border in span]
    ascending = all(left <= right for left, right in pairwise([0, *borders, length]))
    if not ascending or any(start == end for start, end in spans):
        raise ConfigError(
            f"chunker {chunker}: expected disjoint, ascending spans within {length} characters; "
            f"found {spans[:8]}. Correct the chunker, or use --chunker phrases"
        )
