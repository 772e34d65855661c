"""How well a model predicts the gold responses, and how close it is to a teacher there.

In: a student, a teacher or none, tokens of examples. Out: held-out loss in two reductions, and
forward KL, reverse KL and total variation to the teacher, exact over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cachekd.data.alignment import response_rows
from cachekd.evaluation.figures import Figure, figure
from cachekd.evaluation.scores import Side, Wanted, score
from cachekd.evaluation.tokens import Tokens

DIVERGENCES = ("forward_kl", "reverse_kl", "tvd")


def gold_figures(
    student: Side,
    teacher: Side | None,
    tokens: Sequence[Tokens],
    batch_tokens: int,
    told: Callable[[int], None],
) -> dict[str, Figure]:
    """Figures in nats (``tvd``: 0 to 1).

    ``loss`` is the mean over examples of -log q a token, as the papers have it;
    ``loss_token_mean`` and the divergences are means over all response tokens.

    Args:
        student: q.
        teacher: p, or None.
        tokens: of the examples.
        batch_tokens: token budget of a batch.
        told: is told how many examples are done.

    Raises:
        TeacherError, MemoryError: see `cachekd.evaluation.scores.score`.
    """
    names = DIVERGENCES if teacher is not None else ()
    scores = score(student, teacher, [wanted(item) for item in tokens], batch_tokens, names, told)
    every = {name: np.concatenate([one[name] for one in scores]) for name in ("nll", *names)}
    figures = {
        "loss": figure([float(np.mean([one["nll"].mean() for one in scores]))]),
        "loss_token_mean": figure([float(every["nll"].mean())]),
    }
    zero = "infinite: one side gives probability 0 to what the other may say"
    return figures | {name: figure([float(every[name].mean())], why=zero) for name in names}


def wanted(item: Tokens) -> Wanted:
    """The rows of a gold response that are judged."""
    rows = np.array(response_rows(len(item.prompt), len(item.response)), np.int64)
    return Wanted(
        input_ids=np.concatenate([item.prompt, item.response]),
        rows=rows[item.judged],
        targets=item.response[item.judged].astype(np.int64),
    )
