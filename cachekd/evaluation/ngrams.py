"""Diversity and repetition of responses, by n-grams of their token ids.

In: token ids of responses. Out: how many n-grams they have, how many are different, and how much
of a response repeats itself. distinct-n (Li et al., "A Diversity-Promoting Objective Function for
Neural Conversation Models", 2016) over all responses of a run together: it falls with the size of
the run, so that only runs of one size compare. seq-rep-n (Welleck et al., "Neural Text Generation
with Unlikelihood Training", 2020, Eq. 11) looks at each response alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachekd.types import Int32


def gram_counts(responses: Sequence[Int32], n: int) -> tuple[int, int]:
    """Different n-grams of all responses together, and all of them."""
    grams = [gram for ids in responses for gram in _grams(ids, n)]
    return len(set(grams)), len(grams)


def distinct(responses: Sequence[Int32], n: int) -> float:
    """Share of distinct n-grams among all n-grams of some responses; nan where there are none."""
    different, every = gram_counts(responses, n)
    return different / every if every else float("nan")


def seq_rep(responses: Sequence[Int32], n: int) -> float:
    """Mean share of a response's n-grams that it had before; nan where none has n tokens."""
    counts = [gram_counts([ids], n) for ids in responses if len(ids) >= n]
    if not counts:
        return float("nan")
    return sum(1 - different / every for different, every in counts) / len(counts)


def _grams(ids: Int32, n: int) -> list[tuple[int, ...]]:
    tokens = ids.tolist()
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
