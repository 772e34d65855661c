"""Which rows are trained: the one place of the project that maps tokens to rows.

In: the role of each token, where the completion begins, and what the user wants to train on.
Out: a mask over the L-1 rows of a document. Row t predicts token t+1 (alignment law, see
`cachekd.types`), so a row is trained exactly when its target token is. Capture, losses and metrics
all come here; nothing else shifts by one.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cachekd.types import Role, UInt8


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


def response_rows(prompt_length: int, response_length: int) -> range:
    """The rows that predict a response of n tokens after a prompt of P tokens: P-1 .. P+n-2.

    The first token of a document has no row, so an empty prompt leaves n-1 rows.

    Args:
        prompt_length: P, 0 or more.
        response_length: n, with its EOS if it has one.
    """
    return range(max(prompt_length - 1, 0), max(prompt_length + response_length - 1, 0))
