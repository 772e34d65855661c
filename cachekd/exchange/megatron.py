"""Megatron-LM: tars of the top-k log-probabilities that ``--logits-save-dir`` holds.

A sample has as many rows as the model saw tokens; row t is the distribution over the token after
t, also the last one's, which a sample of the data has as its label. The tars hold no tokens: they
are given with ``--tokens``, as files with ``input_ids``, one row a sample in the order of training,
from the first sample of the run on (as many tokens as rows, or one more). Nothing but the shift
check and the lengths tell that these are the right ones. Entries that top-p left out have no mass
and are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any, ClassVar

import numpy as np

from cachekd.config import ExportConfig, ImportConfig
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import Broken, Document, Found, Reading, Writing
from cachekd.exchange._files import Batch, list_of, numbers, tables
from cachekd.exchange._megatron import Payload, order_of, payloads, ranks_of
from cachekd.exchange._sources import File, files_of
from cachekd.store.reader import Cache
from cachekd.types import Int64

_IDS = 1 << 17


class Megatron:
    """See the module's text."""

    lacks: ClassVar[tuple[str, ...]] = (
        "token ids of the text",
        "tail mass",
        "log-probability of the next token",
        "entropy",
        "log-normalisers",
        "roles",
        "teacher and weights",
    )

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """See `cachekd.exchange.Format.read`."""
        if not config.tokens:
            raise ConfigError(
                "tokens: Megatron-LM's tars hold no token ids; give files with the input_ids of "
                "the samples, in the order of training, with --tokens"
            )
        if vocab_size > _IDS:
            raise DataError(
                f"megatron: tars hold token ids of 17 bits, below {_IDS}; the tokenizer has "
                f"{vocab_size} tokens, so that higher ids were cut. Save them in another format"
            )
        ranks = ranks_of(files_of(config.source, [".tar"]))
        tokens, _, _ = tables(config.tokens, ("input_ids",), "a file of tokens")
        told: dict[str, Any] = {}
        return Reading(
            documents=_documents(ranks, _tokens(tokens), told),
            values="logprobs",
            notes={"saved": told},
        )

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """Not written: the order of samples, which is their only key, is that of one run."""
        raise ConfigError(
            "format: megatron can be imported only; its rows belong to iterations and "
            "micro-batches of one training run. Export axolotl, distillkit or arrow"
        )


def _tokens(batches: Iterator[Batch]) -> Iterator[Int64]:
    """Token ids of each row; none of them may be left out, for their order is all that counts."""
    for source, first, batch in batches:
        if isinstance(batch, Broken):
            raise DataError(f"{source} row {first}: {batch.reason}")
        offsets, values = list_of(batch.column("input_ids"))
        for place in range(batch.num_rows):
            part = values.slice(offsets[place], offsets[place + 1] - offsets[place])
            yield numbers(part, np.int64)


def _documents(
    ranks: dict[int, list[File]], tokens: Iterator[Int64], told: dict[str, Any]
) -> Iterator[Found]:
    streams = [payloads(ranks[rank], told) for rank in sorted(ranks)]
    number = 0
    for own in zip_longest(*streams):
        if any(payload is None for payload in own) or len({(p.number, p.end) for p in own}) != 1:
            held = [payload.number if payload else "none" for payload in own]
            raise DataError(
                f"{next(p.source for p in own if p)}: the ranks are at members {held}; tars of "
                "some are missing"
            )
        order = order_of(own, told)
        first = own[0].number * (len(order) if own[0].end is None else 1)
        if first < number:
            raise DataError(
                f"{own[0].source}: iterations have other numbers of samples than before"
            )
        for _ in islice(tokens, first - number):
            pass  # samples of iterations that were not saved
        number = first
        for rank, place in order:
            yield _document(own[rank], place, number, tokens)
            number += 1


def _document(payload: Payload, place: int, number: int, tokens: Iterator[Int64]) -> Found:
    ids, logs = payload.sample(place)
    own = next(tokens, None)
    if own is None:
        raise DataError(
            f"{payload.source}: member {payload.number} holds sample {number}, and --tokens "
            f"has {number} rows only"
        )
    if len(own) not in (len(ids), len(ids) + 1):
        return Broken(
            source=payload.source,
            row=number,
            reason=f"{len(own)} token ids beside {len(ids)} rows; expected as many, or one more",
        )
    return Document(
        source=payload.source,
        row=number,
        input_ids=own,
        counts=np.full(len(ids), ids.shape[1], np.int64),
        ids=ids.ravel(),
        logprobs=logs.ravel(),
    )


PLUGIN = Megatron
