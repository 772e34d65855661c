"""Which columns a row has, and the noun they make.

In: rows of `cachekd.data.sources` and the column names a user maps. Out: one `Noun` a row, its
domain and its weight. The first layout whose columns are all there wins; a name that the user maps
leaves only the layouts that need it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.config import DataConfig
from cachekd.data.messages import read_history, read_messages, read_sharegpt
from cachekd.data.nouns import (
    BadRow,
    Chat,
    Instruction,
    Message,
    Noun,
    PlainText,
    PromptCompletion,
    Tokens,
)
from cachekd.errors import ConfigError, DataError
from cachekd.types import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    parse: Callable[[Mapping[str, Any]], Noun]

    def __str__(self) -> str:
        return "+".join(self.required) + "".join(f"(+{name})" for name in self.optional)


def column_map(config: DataConfig) -> dict[str, str]:
    """Known name -> column of the data, for the names that the user maps.

    Raises:
        ConfigError: a name that cachekd does not know, or two columns for the domain.
    """
    names = dict(config.columns)
    for name in names:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"columns: unknown name {name!r}.{hint} Known: {', '.join(_KNOWN)}")
    domain = config.domain_column
    if domain is not None and names.setdefault("domain", domain) != domain:
        raise ConfigError(
            f"domain_column is {domain!r}, but columns maps domain to {names['domain']!r}; set one"
        )
    return names


def check_columns(row: Mapping[str, Any], names: Mapping[str, str], source: str) -> None:
    """Refuse a whole file by its first row.

    Raises:
        DataError: a mapped column is not there, or no layout matches; lists what was found.
    """
    found = ", ".join(str(key) for key in row) or "none"
    for name, column in names.items():
        if column not in row:
            raise DataError(
                f"{source}: expected column {column!r}, since --columns maps {name!r} to it; "
                f"found: {found}"
            )
    named = _named(row, names)
    if not any(_present(layout, named) for layout in _candidates(names)):
        accepted = ", ".join(str(layout) for layout in _candidates(names))
        raise DataError(
            f"{source}: expected the columns of one layout ({accepted}); found: {found}. "
            "Map them with --columns KNOWN=COLUMN"
        )


def read_noun(row: Mapping[str, Any], names: Mapping[str, str]) -> Noun:
    """What the row says; ``names`` is what `column_map` gave.

    Raises:
        BadRow: columns or values are missing, empty or of the wrong type.
    """
    named = _named(row, names)
    present = [layout for layout in _candidates(names) if _present(layout, named)]
    for layout in present:
        if all(named[name] is not None for name in layout.required):
            return layout.parse(named)
    if present:
        empty = [name for name in present[0].required if named[name] is None]
        raise BadRow("missing value", f"{', '.join(empty)}: expected a value, found none")
    raise BadRow("missing column", f"no layout matches the columns {', '.join(map(str, row))}")


def read_domain(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The domain label of the row: "" when no column is mapped or the value is missing.

    Raises:
        BadRow: the value is neither text nor a number.
    """
    value = row.get(names["domain"]) if "domain" in names else None
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow("wrong type", f"domain: expected text, found {type(value).__name__}")
    return str(value)


def read_weight(row: Mapping[str, Any], names: Mapping[str, str]) -> float:
    """The weight of the row: 1 when no column is mapped.

    Raises:
        BadRow: the value is missing, not a number, negative or not finite.
    """
    if "weight" not in names:
        return 1.0
    value = row.get(names["weight"])
    if value is None:
        raise BadRow("missing value", "weight: expected a number, found none")
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        weight = float(value)
    except ValueError:
        raise BadRow("wrong type", f"weight: expected a number, found {value!r:.80}") from None
    if not math.isfinite(weight) or weight < 0:
        raise BadRow("bad weight", f"expected a finite weight of 0 or more, found {weight}")
    return weight


def _named(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    columns = {name: names.get(name, name) for name in _KNOWN}
    return {name: row[column] for name, column in columns.items() if column in row}


def _candidates(names: Mapping[str, str]) -> list[_Layout]:
    chosen = [layout for layout in _LAYOUTS if names.keys() & set(layout.required)]
    return chosen or list(_LAYOUTS)


def _present(layout: _Layout, named: Mapping[str, Any]) -> bool:
    return all(name in named for name in layout.required)


def _string(named: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = named[name]
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name}: expected text, found {type(value).__name__}")
    if not empty and not value.strip():
        raise BadRow("empty text", f"{name} is empty")
    return value


def _messages(named: Mapping[str, Any]) -> Chat:
    return _chat(read_messages(named["messages"], "messages"))


def _conversations(named: Mapping[str, Any]) -> Chat:
    return _chat(read_sharegpt(named["conversations"], "conversations"))


def _chat(messages: tuple[Message, ...]) -> Chat:
    if not messages:
        raise BadRow("empty text", "the conversation has no messages")
    return Chat(messages=messages)


def _prompt_completion(named: Mapping[str, Any]) -> PromptCompletion | Chat:
    prompt, completion = named["prompt"], named["completion"]
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        return PromptCompletion(
            prompt=_string(named, "prompt", empty=True), completion=_string(named, "completion")
        )
    before = read_messages(prompt, "prompt")
    after = read_messages(completion, "completion")
    if not after:
        raise BadRow("empty text", "completion has no messages")
    if after[0].role != "assistant":
        raise BadRow(
            "unknown role", f"completion: expected an assistant message, found {after[0].role!r}"
        )
    return Chat(messages=before + after, prompt_messages=len(before))


def _instruction(named: Mapping[str, Any]) -> Instruction:
    output = named["output"]
    if isinstance(output, list):
        if not output:
            raise BadRow("empty text", "output is an empty list of references")
        output = output[0]
    return Instruction(
        instruction=_string(named, "instruction", empty=True),
        input="" if named.get("input") is None else _string(named, "input", empty=True),
        history=read_history(named.get("history"), "history"),
        output=_string({"output": output}, "output"),
    )


def _text(named: Mapping[str, Any]) -> PlainText:
    return PlainText(text=_string(named, "text"))


def _tokens(named: Mapping[str, Any]) -> Tokens:
    ids = _integers(named["input_ids"], "input_ids")
    if named.get("labels") is None:
        return Tokens(input_ids=ids, labels=None)
    labels = _integers(named["labels"], "labels")
    if len(labels) != len(ids):
        raise BadRow("bad labels", f"expected {len(ids)} labels, one a token; found {len(labels)}")
    trained = labels != -100
    if not np.array_equal(labels[trained], ids[trained]):
        raise BadRow("bad labels", "expected labels that are -100 or equal to input_ids")
    if not trained[1:].any():
        raise BadRow("bad labels", "no token after the first has a label")
    return Tokens(input_ids=ids, labels=labels)


def _integers(value: Any, name: str) -> Int64:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise BadRow("wrong type", f"{name}: expected a list of integers, found {value!r:.80}")
    try:
        return np.asarray(value, dtype=np.int64)
    except OverflowError:
        raise BadRow("wrong type", f"{name}: an integer needs more than 64 bits") from None


_LAYOUTS = (
    _Layout(required=("messages",), parse=_messages),
    _Layout(required=("conversations",), parse=_conversations),
    _Layout(required=("prompt", "completion"), parse=_prompt_completion),
    _Layout(required=("instruction", "output"), optional=("input", "history"), parse=_instruction),
    _Layout(required=("text",), parse=_text),
    _Layout(required=("input_ids",), optional=("labels",), parse=_tokens),
)
_KNOWN = (
    *(name for layout in _LAYOUTS for name in (*layout.required, *layout.optional)),
    "domain",
    "weight",
)
