"""Log-probabilities and divergences of models at rows of documents, over the whole vocabulary.

In: a student, a teacher or none, and documents with the rows that are wanted. Out: for each row
-log q of a token, and divergences of the two whole distributions, float64. The bodies run on
batches, the heads on chunks of rows, and the sums on tiles of these, so that memory is bounded by
the tile, whatever batch and vocabulary are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachekd.errors import TeacherError
from cachekd.rollouts.batches import by_length
from cachekd.teachers._head import LogitRows
from cachekd.teachers._memory import one_memory_error
from cachekd.types import Int32, Int64

Scores = dict[str, NDArray[np.float64]]
"""Of one document: ``nll`` and divergences by name, [n] each."""

# Elements of a tile, float64, of which a few exist at once: on a CPU they stay in its cache, which
# makes these sums ten times as fast as with 32 MiB.
_TILE = {"cpu": 1 << 16}
_TILE_DEVICE = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """A model that is read.

    Attributes:
        name: how messages call it.
        model: of transformers, in evaluation mode.
        rows: its logits at chosen rows.
        device: where its inputs go.
        vocab_size: real vocabulary; logits beyond it are padding.
    """

    name: str
    model: Any
    rows: LogitRows
    device: torch.device
    vocab_size: int

    @classmethod
    def of(cls, name: str, model: Any, vocab_size: int) -> Side:
        """A loaded model."""
        device = model.get_input_embeddings().weight.device
        rows = LogitRows(model, device)
        return cls(name=name, model=model, rows=rows, device=device, vocab_size=vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """Rows of a document.

    Attributes:
        input_ids: int32 [L].
        rows: row numbers, int64 [n]; row t predicts token t+1. A row may come more than once.
        targets: token whose log-probability is wanted at each, int64 [n].
    """

    input_ids: Int32
    rows: Int64
    targets: Int64


def score(
    student: Side,
    teacher: Side | None,
    documents: Sequence[Wanted],
    batch_tokens: int,
    divergences: Sequence[str] = (),
    told: Callable[[int], None] | None = None,
) -> list[Scores]:
    """What is wanted of each document.

    Args:
        student: q.
        teacher: p, of the same vocabulary; None: no divergences.
        documents: what is read.
        batch_tokens: token budget of a batch (rows x longest document).
        divergences: of "forward_kl", "reverse_kl" and "tvd".
        told: is told how many documents are done, at the start and after each batch.

    Raises:
        TeacherError: a model gave NaN or infinite logits, or fewer than its tokenizer has tokens;
            says which.
        MemoryError: out of memory for a single document.
    """
    sides = [student] if teacher is None else [student, teacher]
    found: dict[int, Scores] = {}
    lengths = [len(item.input_ids) for item in documents]
    if told is not None:
        told(0)
    with torch.inference_mode():
        for places in by_length(lengths, batch_tokens):
            batch = [documents[place] for place in places]
            found.update(zip(places, _tried(sides, batch, divergences), strict=True))
            if told is not None:
                told(len(found))
    return [found[place] for place in range(len(documents))]


def _tried(
    sides: Sequence[Side], documents: Sequence[Wanted], divergences: Sequence[str]
) -> list[Scores]:
    """What is read of each; where memory is short, of one half after the other."""
    try:
        with one_memory_error():
            return _read(sides, documents, divergences)
    except MemoryError:
        if len(documents) == 1:
            raise
    gc.collect()
    half = len(documents) // 2
    parts = (documents[:half], documents[half:])
    return [scores for part in parts for scores in _tried(sides, part, divergences)]


def _read(
    sides: Sequence[Side], documents: Sequence[Wanted], divergences: Sequence[str]
) -> list[Scores]:
    width = max(len(item.input_ids) for item in documents)
    ids_BT = np.zeros((len(documents), width), np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for b, item in enumerate(documents):
        ids_BT[b, : len(item.input_ids)] = item.input_ids
        mask_BT[b, : len(item.input_ids)] = 1
    flat_N = np.concatenate([b * width + item.rows for b, item in enumerate(documents)])
    targets_N = torch.from_numpy(np.concatenate([item.targets for item in documents]))
    elements = _TILE.get(sides[0].device.type, _TILE_DEVICE)
    step = max(1, elements // sides[0].vocab_size)
    walks = [_tiles(side, ids_BT, mask_BT, flat_N, step) for side in sides]
    parts: list[Scores] = []
    for tiles, targets_n in zip(
        zip(*walks, strict=True), torch.split(targets_N, step), strict=True
    ):
        parts.append(_scores(tiles, targets_n, divergences))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    cuts = np.cumsum([len(item.rows) for item in documents])[:-1]
    split = {name: np.split(values, cuts) for name, values in whole.items()}
    return [{name: values[b] for name, values in split.items()} for b in range(len(documents))]


def _tiles(side: Side, ids_BT: Int64, mask_BT: Int64, flat_N: Int64, step: int) -> Iterator[Tensor]:
    """Log-probabilities of a model at rows of the flattened batch, float64, ``step`` at a time."""
    inputs = (torch.from_numpy(array).to(side.device) for array in (ids_BT, mask_BT, flat_N))
    held: Tensor | None = None
    for logits_nV in side.rows.chunks(*inputs):
        held = logits_nV if held is None else torch.cat([held, logits_nV])
        while len(held) >= step:
            yield _normalised(side, held[:step])
            held = held[step:]
    if held is not None and len(held):
        yield _normalised(side, held)


def _normalised(side: Side, logits_nV: Tensor) -> Tensor:
    if logits_nV.shape[-1] < side.vocab_size:
        raise TeacherError(
            f"{side.name} gives {logits_nV.shape[-1]} logits; its tokenizer has "
            f"{side.vocab_size} tokens. Use the tokenizer that belongs to it"
        )
    logits_nV = logits_nV[:, : side.vocab_size].double()
    if not bool(logits_nV.amax(-1).isfinite().all()):
        raise TeacherError(
            f"{side.name} gave logits that are NaN or infinite. Check its weights and dtype"
        )
    return torch.log_softmax(logits_nV, -1)


def _scores(tiles: Sequence[Tensor], targets_n: Tensor, divergences: Sequence[str]) -> Scores:
    log_q_nV = tiles[0]
    nll_n = -log_q_nV.gather(1, targets_n.to(log_q_nV.device)[:, None])[:, 0]
    found = {"nll": nll_n}
    if divergences:
        log_p_nV = tiles[1].to(log_q_nV.device)
        found |= {name: _DIVERGENCES[name](log_p_nV, log_q_nV) for name in divergences}
    return {name: values_n.cpu().numpy() for name, values_n in found.items()}


def _kl(log_p_nV: Tensor, log_q_nV: Tensor) -> Tensor:
    """KL(p || q), [n]; what p gives probability 0 counts nothing."""
    p_nV = log_p_nV.exp()
    return torch.where(p_nV > 0, p_nV * (log_p_nV - log_q_nV), 0.0).sum(-1)


def _tvd(log_p_nV: Tensor, log_q_nV: Tensor) -> Tensor:
    """Half of the sum of |p - q|, [n]."""
    return (log_p_nV.exp() - log_q_nV.exp()).abs().sum(-1) / 2


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda log_p_nV, log_q_nV: _kl(log_q_nV, log_p_nV),
    "tvd": _tvd,
}
