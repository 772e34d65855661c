"""Text that no teacher has scored: samples of data files, worded as a run words them.

In: settings of the data and a `Wording`: that of a cache, so that other text is tokenised as its
samples were, or that of a run without one. Out: samples, and records of them without targets.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from cachekd.config import DataConfig
from cachekd.data.samples import Prepared, prepare
from cachekd.data.sources import read_rows
from cachekd.errors import ConfigError
from cachekd.types import Record, Sample, TopKLogits

if TYPE_CHECKING:
    from cachekd.config import TrainConfig
    from cachekd.store.identity import Identity

_LONGEST = int(np.iinfo(np.int32).max)
_MADE = ("prompt_template", "add_eos", "clock")
_OF_TOKENIZER = ("chat_template", "bos_token", "eos_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How rows become tokens.

    Attributes:
        made: prompt template, whether EOS is added, clock, and, where they are known, chat
            template, BOS and EOS.
        vocab_size: real vocabulary.
    """

    made: Mapping[str, Any]
    vocab_size: int


def wording_of_cache(identity: Identity) -> Wording:
    """How the samples of a cache were worded.

    Raises:
        ConfigError: the cache does not say.
    """
    made = identity.provenance
    missing = [name for name in _MADE if name not in made]
    if missing:
        raise ConfigError(
            f"eval_data: the cache does not say how its samples were worded ({', '.join(missing)} "
            "missing in its cache.json), so other text cannot be worded alike. Evaluate on a cache "
            "with --eval-cache"
        )
    known = {name: made[name] for name in (*_MADE, *_OF_TOKENIZER) if name in made}
    return Wording(made=known, vocab_size=int(identity.source["vocab_size"]))


def wording_of_run(config: TrainConfig, tokenizer: Any, vocab_size: int, clock: str) -> Wording:
    """How a run without a cache words its data, by the student's tokenizer."""
    made = {
        "prompt_template": config.prompt_template,
        "add_eos": config.add_eos,
        "clock": clock,
        **{name: getattr(tokenizer, name) for name in _OF_TOKENIZER},
    }
    return Wording(made=made, vocab_size=vocab_size)


def samples_of(settings: DataConfig, wording: Wording, tokenizer: Any) -> Prepared:
    """Samples of data files.

    Args:
        settings: which rows, and what becomes of long and bad ones; how they are worded is that
            of ``wording``.
        wording: see there.
        tokenizer: the student's.

    Raises:
        DataError: a row cannot be used.
    """
    made = wording.made
    settings = replace(settings, prompt_template=made["prompt_template"], add_eos=made["add_eos"])
    return prepare(
        read_rows(settings),
        settings,
        _worded(tokenizer, made),
        context_length=settings.max_length or _LONGEST,
        vocab_size=wording.vocab_size,
        clock=datetime.fromisoformat(made["clock"]),
    )


def _worded(tokenizer: Any, made: Mapping[str, Any]) -> Any:
    """A copy of the tokenizer with the template and special tokens of the wording."""
    worded = copy.deepcopy(tokenizer)
    for name in _OF_TOKENIZER:
        if made.get(name) is not None:
            setattr(worded, name, made[name])
    return worded


def bare_record(
    sample: Sample, vocab_size: int, temperatures: Sequence[float] = (), sample_id: bytes = b""
) -> Record:
    """A record without entries.

    Args:
        sample: its tokens, roles and weight.
        vocab_size: real vocabulary.
        temperatures: those that records beside it in a batch have.
        sample_id: of the record.
    """
    return Record(
        key=b"",
        sample_id=sample_id,
        input_ids=sample.input_ids,
        roles=sample.roles,
        prompt_length=sample.prompt_length,
        domain=sample.domain,
        weight=sample.weight,
        logits=no_logits(len(sample.input_ids) - 1, vocab_size, temperatures),
    )


def no_logits(rows: int, vocab_size: int, temperatures: Sequence[float] = ()) -> TopKLogits:
    """Targets of rows that were not captured."""
    zeros = np.zeros(rows, np.float32)
    return TopKLogits(
        offsets=np.zeros(rows + 1, np.int64),
        ids=np.empty(0, np.int32),
        logprobs=np.empty(0, np.float32),
        weights=None,
        tail=zeros,
        next_logprob=zeros,
        lognorm=dict.fromkeys(temperatures, zeros),
        entropy=zeros,
        vocab_size=vocab_size,
    )
