"""The student read at chosen rows, without gradients: as training itself sees it.

In: a student and documents. Out: for each document log-probabilities of the actual tokens, its own
best tokens, or its divergence from given targets, row by row. The forward pass, the head and the
sums are those of the loss, so that a ratio of the student to itself is 1.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from cachekd.losses.choice import Divergence
from cachekd.losses.divergences import divergence
from cachekd.losses.fused import Reading
from cachekd.losses.student import StudentRows
from cachekd.rollouts.batches import by_length
from cachekd.rollouts.modes import inference
from cachekd.teachers._memory import one_memory_error
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import row_loss
from cachekd.training.texts import no_logits
from cachekd.types import (
    Batch,
    Float32,
    Int32,
    Int64,
    ObjectiveOutput,
    Record,
    Role,
    TargetTensors,
    TopKLogits,
)

_Read = Callable[[StudentRows, TargetTensors], Tensor]


class ModelReader:
    """A `cachekd.rollouts.StudentReader` of a model of transformers.

    Args:
        model: gives the student, without wrappers.
        vocab_size: real vocabulary.
        batch_tokens: token budget of a batch (rows x longest document).
        numerics: within it the student runs as it is trained (autocast).
    """

    def __init__(
        self,
        model: Callable[[], Any],
        vocab_size: int,
        batch_tokens: int,
        numerics: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._batch_tokens, self._numerics = batch_tokens, numerics
        self._head: StudentHead | None = None

    def next_logprobs(self, documents: Sequence[Int32], first_rows: Sequence[int]) -> list[Float32]:
        """See `cachekd.rollouts.StudentReader.next_logprobs`."""
        records = self._records(documents, first_rows, None)
        return self._rows(records, lambda student, _: student.next_log_q(), Reading())

    def best_ids(
        self, documents: Sequence[Int32], first_rows: Sequence[int], count: int
    ) -> list[Int32]:
        """See `cachekd.rollouts.StudentReader.best_ids`."""

        def best(student: StudentRows, _: TargetTensors) -> Tensor:
            logits_RV = student.logits()
            return logits_RV.topk(min(count, logits_RV.shape[1]), dim=1).indices

        found = self._rows(self._records(documents, first_rows, None), best, Reading(dense=True))
        return [ids_RK.astype(np.int32) for ids_RK in found]

    def divergences(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        targets: Sequence[TopKLogits],
        name: str,
    ) -> list[Float32]:
        """See `cachekd.rollouts.StudentReader.divergences`."""
        spec = Divergence(name=name)
        return self._rows(
            self._records(documents, first_rows, targets),
            lambda student, rows: divergence(student, rows, spec),
            Reading(),
        )

    def _records(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        targets: Sequence[TopKLogits] | None,
    ) -> list[Record]:
        given = targets or [no_logits(len(ids) - 1, self._vocab_size) for ids in documents]
        return [
            Record(
                key=b"",
                sample_id=b"",
                input_ids=ids,
                roles=np.full(len(ids), Role.TEXT, np.uint8),
                prompt_length=first + 1,
                domain="",
                weight=1.0,
                logits=logits,
            )
            for ids, first, logits in zip(documents, first_rows, given, strict=True)
        ]

    def _rows(self, records: Sequence[Record], read: _Read, reading: Reading) -> list[Any]:
        """What is read of each document's rows, as numpy arrays."""
        model = self._model()
        found: dict[int, Any] = {}
        with inference(model), self._numerics():
            if self._head is None:
                self._head = StudentHead(model, model)
            lengths = [len(record.input_ids) for record in records]
            for places in by_length(lengths, self._batch_tokens):
                chosen = [records[place] for place in places]
                parts = self._tried(chosen, lambda batch: self._read(model, batch, read, reading))
                found.update(zip(places, parts, strict=True))
        return [found[place] for place in range(len(records))]

    def _tried(self, records: Sequence[Record], read: Callable[[Batch], Any]) -> list[Any]:
        """What is read of each; where memory is short, of one half after the other."""
        try:
            with one_memory_error():
                values_N = read(_FromRow()(records))
        except MemoryError:
            if len(records) == 1:
                raise
        else:
            sizes = [len(r.input_ids) - (r.prompt_length or 0) for r in records]
            return np.split(values_N, np.cumsum(sizes)[:-1])
        gc.collect()
        half = len(records) // 2
        return self._tried(records[:half], read) + self._tried(records[half:], read)

    def _read(self, model: Any, batch: Batch, read: _Read, reading: Reading) -> Any:
        assert self._head is not None, "made before the first batch"
        device = next(model.parameters()).device
        batch = send_to_device(batch, device)
        chunks: list[Tensor] = []

        def keep(student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
            chunks.append(read(student, targets).cpu())
            none = targets["weights"].new_zeros(())
            return ObjectiveOutput(loss_sum=none, weight_sum=none)

        row_loss(model, self._head, batch, batch["targets"], keep, reading, self._vocab_size)
        return torch.cat(chunks).numpy()


class _FromRow(Collator):
    """Documents whose rows are wanted from the one before ``prompt_length`` on."""

    def _trained(self, record: Record) -> Int64:
        assert record.prompt_length is not None, "set by the reader"
        return np.arange(record.prompt_length - 1, len(record.input_ids) - 1, dtype=np.int64)
