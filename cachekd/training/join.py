"""Rows of a data file as samples that are met with those of caches: filter, repeat, mask anew.

In: settings of the data, opened caches, and the student's tokenizer. Out: `DataSamples`, tokenised
exactly as the capture did it: prompt template, chat template, BOS, EOS and clock are those that the
caches recorded, because they make the tokens, and the tokens are the key. Roles, prompt length,
weight and domain are those of the file, each row as often as it stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.capture.replay import load_tokenizer_of, recorded_of, replay
from cachekd.config import TrainConfig
from cachekd.data.digests import differences
from cachekd.data.spool import SpooledSamples
from cachekd.errors import MismatchError
from cachekd.store.collected import collect
from cachekd.store.samples import (
    SampleTable,
    keys_of,
    read_samples,
    sample_ids,
    write_samples,
)

if TYPE_CHECKING:
    from cachekd.store.reader import Cache


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
    prepared = replay(
        config,
        recorded,
        _tokenizer(student, recorded, trust=config.trust_remote_code),
        longest=max(int(cache.lengths.max(initial=2)) for cache in caches),
        vocab_size=int(caches[0].identity.source["vocab_size"]),
        on_long=config.on_long,
        on_bad=config.on_bad,
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
        own = recorded_of(cache.identity.provenance, cache.name)
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
    """The student's tokenizer; its tokens are the teacher's, its template the recorded one."""
    tokenizer = load_tokenizer_of(student, trust=trust)
    own = tokenizer.chat_template
    if own is not None and recorded["chat_template"] not in (None, own):
        raise MismatchError(
            f"data: the chat template of the student {student} is another than the one that the "
            "cache was captured with, so that it would not see its prompts as it was taught. Save "
            "the recorded template (cachekd inspect CACHE --json, provenance.chat_template) as "
            "the student's chat_template.jinja, or leave --data out"
        )
    return tokenizer
