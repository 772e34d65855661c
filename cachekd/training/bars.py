"""The bars of transformers, beside our own. In: whether the caller shows progress. Out: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_bars(*, own: bool) -> Iterator[None]:
    """Within, transformers shows no bars for loading and saving if the caller has its own."""
    from transformers.utils import logging

    if not own or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
