"""A made-up teacher for tests, documents and trial runs: no weights, same numbers everywhere.

Row t depends on ``input_ids[: t + 1]`` through a running hash, so a shifted or shuffled capture
does not equal the right one. ``--teacher`` names its folder (configuration and tokenizer only).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig
from cachekd.data.models import context_length, model_config, resolve_model
from cachekd.teachers import Selection, TeacherFacts
from cachekd.types import Float32, Int32, TopKLogits

_DEFAULT_CONTEXT = 4096


def dummy_logits(input_ids: Int32, vocab_size: int) -> Float32:
    """Logits of every position, float32 [L, V]: a pure function of the tokens so far."""
    states = np.zeros(len(input_ids), dtype=np.uint64)
    state = 1469598103934665603
    for t, token in enumerate(input_ids.tolist()):
        state = ((state ^ (token + 1)) * 1099511628211) % (1 << 64)
        states[t] = state
    phase_LV = (states[:, None] >> np.uint64(20)).astype(np.float64) % 9973.0 + np.arange(
        1, vocab_size + 1
    ) * ((states[:, None] >> np.uint64(7)).astype(np.float64) % 7919.0)
    return (4.0 * np.sin(phase_LV)).astype(np.float32)


class DummyTeacher:
    """Scores documents with `dummy_logits`."""

    @staticmethod
    def identify(config: PrecomputeConfig) -> TeacherFacts:
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
        )

    @staticmethod
    def load(config: PrecomputeConfig, facts: TeacherFacts, threads: int) -> DummyTeacher:
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
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`."""
        import torch

        from cachekd.teachers._assembly import assemble, select
        from cachekd.teachers._sampling import uniforms

        tiles, captured = [], []
        for ids_L, rows in zip(documents, wanted, strict=True):
            mask = np.ones(len(ids_L) - 1, dtype=bool) if rows is None else rows
            logits_LV = torch.from_numpy(dummy_logits(ids_L, selection.vocab_size))
            next_L = torch.from_numpy(ids_L[1:].astype(np.int64))
            keep = torch.from_numpy(mask)
            drawn = uniforms(selection, [ids_L], [mask])
            uniform_N = None if drawn is None else torch.from_numpy(drawn)
            tiles.append(select(logits_LV[:-1][keep], next_L[keep], selection, uniform_N))
            captured.append(mask)
        return assemble(tiles, captured, selection)


PLUGIN = DummyTeacher
