"""Rows of a data file as samples that are met with those of caches: filter, repeat, mask anew.

In: settings of the data, opened caches, and the student's tokenizer. Out: `DataSamples`, tokenised
exactly as the capture did it: prompt template, chat template, BOS, EOS and clock are those that the
caches recorded, because they make the tokens, and the tokens are the key. Roles, prompt length,
weight and domain are those of the file, each row as often as it stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cachekd.config import DataConfig, RowsConfig, TrainConfig
from cachekd.data.digests import differences
from cachekd.data.samples import prepare
from cachekd.data.sources import read_rows
from cachekd.data.spool import SpooledSamples
from cachekd.errors import DataError, MismatchError, TeacherError
from cachekd.store.samples import (
    SampleTable,
    collect,
    keys_of,
    read_samples,
    sample_ids,
    write_samples,
)

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

_REPLAYED = ("prompt_template", "chat_template", "add_eos", "bos_token", "eos_token", "clock")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSamples:
    """Samples of data files.

    Attributes:
        table: all but their tokens, in the order of the rows.
        samples: with their tokens, on disk.
        left_out: rows that could not be used, by reason, as the settings allow.
    """

    table: SampleTable
    samples: SpooledSamples
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.table.ids)

    def name(self, number: int) -> str:
        """Source and row of a sample, and its tokens."""
        sample = self.samples[number]
        return f"{sample.source} row {sample.row} ({len(sample.input_ids)} tokens)"


def read_samples_of(config: TrainConfig, caches: Sequence[Cache], student: Path) -> DataSamples:
    """Samples of ``config.data``.

    Args:
        config: names the data and its columns.
        caches: tell how rows became tokens.
        student: folder with the tokenizer.

    Raises:
        MismatchError: the caches recorded different templates, or the student has another one.
        DataError: a row cannot be used, or a cache does not say how it made tokens of rows.
    """
    recorded = _recorded(caches)
    longest = max(int(cache.lengths.max(initial=2)) for cache in caches)
    settings = DataConfig(
        **{item.name: getattr(config, item.name) for item in fields(RowsConfig)},
        prompt_template=recorded["prompt_template"],
        add_eos=recorded["add_eos"],
        on_long=config.on_long,
        on_bad=config.on_bad,
    )
    prepared = prepare(
        read_rows(settings),
        settings,
        _tokenizer(student, recorded, trust=config.trust_remote_code),
        # A capture that cut or split did it at the length of its longest sample. A row that is
        # longer and is not cut is in no cache, and is counted as such.
        context_length=int(np.iinfo(np.int32).max) if config.on_long == "fail" else longest,
        vocab_size=int(caches[0].identity.source["vocab_size"]),
        clock=datetime.fromisoformat(recorded["clock"]),
    )
    samples = prepared.samples
    keys = keys_of(samples)
    ids = sample_ids(samples, keys)
    shard = write_samples(samples, keys, ids, range(len(samples)))
    table = collect([(read_samples("data", shard), False)])
    return DataSamples(table=table, samples=samples, left_out=dict(prepared.skipped))


def _recorded(caches: Sequence[Cache]) -> dict[str, Any]:
    """How the caches made tokens of rows; the clock counts only where a template may ask for it."""
    facts = []
    for cache in caches:
        provenance = cache.identity.provenance
        missing = [name for name in _REPLAYED if name not in provenance]
        if missing:
            raise DataError(
                f"data: cache {cache.name!r} does not say how rows became tokens (its provenance "
                f"lacks {', '.join(missing)}), so that rows cannot be met with it. Train without "
                "--data, or capture again with cachekd precompute"
            )
        own = {name: provenance[name] for name in _REPLAYED}
        facts.append(own if _asks_for_time(own) else {**own, "clock": None})
    for cache, other in zip(caches[1:], facts[1:], strict=True):
        lines = differences(facts[0], other)
        if lines:
            raise MismatchError(
                f"data: the caches {caches[0].name!r} and {cache.name!r} made tokens of rows in "
                "different ways, so that one file cannot be met with both. They differ in (first "
                "/ second):\n  " + "\n  ".join(lines) + "\nTrain with --data on one of them"
            )
    return {**facts[0], "clock": caches[0].identity.provenance["clock"]}


def _asks_for_time(recorded: dict[str, Any]) -> bool:
    return "strftime_now" in (recorded["chat_template"] or "")


def _tokenizer(student: Path, recorded: dict[str, Any], *, trust: bool) -> Any:
    """The student's tokenizer (its tokens are the teacher's) with what the capture recorded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"the tokenizer in {student} cannot be loaded: {error}") from error
    own = tokenizer.chat_template
    if own is not None and recorded["chat_template"] not in (None, own):
        raise MismatchError(
            f"data: the chat template of the student {student} is another than the one that the "
            "cache was captured with, so that it would not see its prompts as it was taught. Save "
            "the recorded template (cachekd inspect CACHE --json, provenance.chat_template) as "
            "the student's chat_template.jinja, or leave --data out"
        )
    tokenizer.chat_template = recorded["chat_template"]
    tokenizer.bos_token, tokenizer.eos_token = recorded["bos_token"], recorded["eos_token"]
    return tokenizer
