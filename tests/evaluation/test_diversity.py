"""distinct-n and seq-rep-n against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cachekd.evaluation.ngrams import distinct, gram_counts, seq_rep
from cachekd.types import Int32


def ids(*tokens: int) -> Int32:
    return np.array(tokens, np.int32)


TEXTS = [ids(1, 2, 1, 2, 1), ids(1, 2, 3), ids(9), ids()]


def test_distinct_counts_over_all_responses() -> None:
    # 1-grams: 5 + 3 + 1, of 1 2 3 9; 2-grams: 12 21 12 21, 12 23; 3-grams: 121 212 121, 123.
    assert gram_counts(TEXTS, 1) == (4, 9)
    assert gram_counts(TEXTS, 2) == (3, 6)
    assert gram_counts(TEXTS, 3) == (3, 4)
    assert distinct(TEXTS, 3) == 0.75
    assert math.isnan(distinct(TEXTS, 6))


def test_seq_rep_is_the_mean_of_each_response() -> None:
    # 2-grams: (1 - 2/4) and (1 - 2/2); the others have none.
    assert seq_rep(TEXTS, 2) == pytest.approx(0.25)
    assert seq_rep([ids(7, 7, 7, 7)], 1) == pytest.approx(0.75)
    assert math.isnan(seq_rep(TEXTS, 6))
