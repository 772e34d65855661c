"""Rows of a data file as the tokens that a capture made of such rows, and their keys.

In: rows, and what a cache recorded: prompt template, chat template, BOS, EOS and clock, because
they make the tokens, and the tokens are the key. Out: `Prepared` samples, or their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cachekd.config import DataConfig, RowsConfig
from cachekd.data import strict
from cachekd.data.models import resolve_model
from cachekd.data.packed import Keys
from cachekd.data.samples import Prepared, prepare
from cachekd.data.sources import read_rows
from cachekd.errors import DataError, TeacherError
from cachekd.store.identity import refuse_difference
from cachekd.store.samples import keys_of
from cachekd.store.tokenizer import tokenizer_facts

_REPLAYED = ("prompt_template", "chat_template", "add_eos", "bos_token", "eos_token", "clock")


def recorded_of(provenance: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How a cache made tokens of rows.

    Raises:
        DataError: it does not say, or what it says cannot be.
    """
    missing = [field for field in _REPLAYED if field not in provenance]
    if missing:
        raise DataError(
            f"data: cache {name!r} does not say how rows became tokens (its provenance lacks "
            f"{', '.join(missing)}), so that rows cannot be met with it. Train without --data, or "
            "capture again with cachekd precompute"
        )
    recorded = {field: provenance[field] for field in _REPLAYED}
    try:
        _clock_of(recorded)
        strict.text(recorded["prompt_template"])
        for field in ("chat_template", "bos_token", "eos_token"):
            if recorded[field] is not None:
                strict.text(recorded[field])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data: cache {name!r} does not say how rows became tokens: {error!s:.200}. Its "
            "provenance was altered: ask who shared it, or capture again with cachekd precompute"
        ) from error
    return recorded


def _clock_of(recorded: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(recorded["clock"])


def replay(
    rows: RowsConfig,
    recorded: Mapping[str, Any],
    tokenizer: Any,
    *,
    longest: int,
    vocab_size: int,
    on_long: str = "fail",
    on_bad: str = "fail",
) -> Prepared:
    """Samples of rows, tokenised as a capture did it.

    Args:
        rows: which rows of which files.
        recorded: see `recorded_of`.
        tokenizer: of the cache.
        longest: tokens of the cache's longest sample. A capture that cut or split did it there;
            a row that is longer and is not cut is in no cache.
        vocab_size: of the cache.
        on_long: what to do with longer rows.
        on_bad: what to do with rows that cannot be used.

    Raises:
        DataError: a row cannot be used.
    """
    settings = _settings(rows, recorded, on_long=on_long, on_bad=on_bad)
    tokenizer.chat_template = recorded["chat_template"]
    tokenizer.bos_token, tokenizer.eos_token = recorded["bos_token"], recorded["eos_token"]
    return prepare(
        read_rows(settings),
        settings,
        tokenizer,
        context_length=int(np.iinfo(np.int32).max) if on_long == "fail" else longest,
        vocab_size=vocab_size,
        clock=_clock_of(recorded),
    )


def _settings(rows: RowsConfig, recorded: Mapping[str, Any], **further: Any) -> DataConfig:
    """How these rows are prepared as a capture did it."""
    return DataConfig(
        **{item.name: getattr(rows, item.name) for item in fields(RowsConfig)},
        prompt_template=recorded["prompt_template"],
        add_eos=recorded["add_eos"],
        **further,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Keys of rows, and how many rows could not be used and have none."""

    keys: Keys
    rows_skipped: int


def keys_of_data(
    door: str,
    rows: RowsConfig,
    provenance: Mapping[str, Any],
    tokenizer_digest: str,
    *,
    tokenizer: str | None,
    longest: int,
    vocab_size: int,
    on_long: str = "fail",
) -> Asked:
    """Keys of rows in a cache with this provenance and tokenizer (other arguments of `replay`).

    Args:
        door: the command, for messages.
        rows: which rows of which files.
        provenance: of the cache.
        tokenizer_digest: of the cache's tokenizer.
        tokenizer: folder or hub id; None: the teacher's, as the cache names it.
        longest: see `replay`.
        vocab_size: see `replay`.
        on_long: see `replay`.

    Raises:
        MismatchError: the tokenizer is another one.
        TeacherError: there is none of this name.
        DataError: no row can be used, or the cache does not say how rows became tokens.
    """
    folder = _own_tokenizer(door, provenance, tokenizer_digest, tokenizer)
    prepared = replay(
        rows,
        recorded_of(provenance, str(provenance.get("teacher"))),
        load_tokenizer_of(folder),
        longest=longest,
        vocab_size=vocab_size,
        on_long=on_long,
        on_bad="skip",
    )
    return Asked(keys=keys_of(prepared.samples), rows_skipped=sum(prepared.skipped.values()))


def _own_tokenizer(
    door: str, provenance: Mapping[str, Any], digest: str, tokenizer: str | None
) -> Path:
    """Folder of a cache's tokenizer (arguments and errors of `keys_of_data`)."""
    name = tokenizer or str(provenance.get("tokenizer") or provenance.get("teacher"))
    try:
        folder = resolve_model(name, provenance.get("revision"), weights=False)
    except TeacherError as error:
        raise TeacherError(
            f"{door}: the cache's tokenizer is needed to make tokens of the data; {error}. Name "
            "its folder or hub id with --tokenizer"
        ) from error
    found = {"tokenizer": tokenizer_facts(folder).digest}
    names = ("the cache", f"the tokenizer {name}")
    refuse_difference(door, {"tokenizer": digest}, found, *names)
    return folder


def load_tokenizer_of(folder: Path, *, trust: bool = False) -> Any:
    """The tokenizer in a folder.

    Raises:
        TeacherError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
