"""ROUGE-L as the papers report it, by the rouge-score library.

In: responses, and the references of each. Out: F-measure of the longest common subsequence with
the Porter stemmer, the best over the references of a response, times 100 (Lin, "ROUGE", 2004; the
setting of MiniLLM and DistiLLM). The library sees runs of a-z and 0-9 alone: text in other scripts
has no words for it, which `sees` tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9]")


def rouge_l(responses: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ROUGE-L of each response, 0 to 100, float64 [P].

    Args:
        responses: P texts; an empty one scores 0.
        references: at least one for each.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score_multi(list(known), response)["rougeL"].fmeasure
        for response, known in zip(responses, references, strict=True)
    ]
    return 100 * np.array(scores, np.float64)


def sees(text: str) -> bool:
    """Whether a text has a word that ROUGE-L counts."""
    return _WORD.search(text.lower()) is not None
