"""What models are evaluated on: prompts, their references, and true labels; no tokens yet.

In: settings and the rows of the data. Out: `Examples`. Rows are read as for training (the same
columns and layouts); beside that a row may hold several references. What is wrong with rows is told
of all of them at once, before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cachekd.config import DataConfig, EvaluateConfig
from cachekd.data.columns import check_columns, column_map, read_noun
from cachekd.data.messages import SHAREGPT
from cachekd.data.nouns import BadRow, Chat, Instruction, Noun, PromptCompletion
from cachekd.data.prompts import question
from cachekd.data.sources import read_rows
from cachekd.errors import DataError

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and what is known of its answer.

    Attributes:
        noun: prompt and gold response, with a border between them.
        references: what a response is compared with, at least one.
        label: number of the true label word, or None where labels are not asked for.
        source, row: where it is from.
    """

    noun: Noun
    references: tuple[str, ...]
    label: int | None
    source: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Examples in the order of the rows, and how many rows were left out, by reason."""

    items: tuple[Example, ...]
    skipped: Mapping[str, int]

    def without(self, bad: Mapping[int, BadRow], on_bad: str) -> Examples:
        """The examples but for some that cannot be used, by their places.

        Raises:
            DataError: bad rows are not to be skipped, or nothing is left.
        """
        found = [(self.items[i].source, self.items[i].row, error) for i, error in bad.items()]
        kept = tuple(item for i, item in enumerate(self.items) if i not in bad)
        return _checked(kept, found, Counter(self.skipped), on_bad)


def data_config(config: EvaluateConfig) -> DataConfig:
    """What of the settings is about data, with the template that the preset gives."""
    own = {item.name for item in fields(config)} & {item.name for item in fields(DataConfig)}
    values = {name: getattr(config, name) for name in own}
    return DataConfig(**{**values, "prompt_template": config.protocol.prompt_template})


def read_examples(config: EvaluateConfig) -> Examples:
    """The examples of the data that the settings name.

    Raises:
        ConfigError: a setting names a column that cachekd does not know.
        DataError: a file cannot be read, has no prompts with references, or rows are bad; names
            the rows.
    """
    settings = data_config(config)
    names = column_map(settings)
    items: list[Example] = []
    bad: list[tuple[str, int, BadRow]] = []
    sources: set[str] = set()
    for source, number, row in read_rows(settings):
        if number == 0 or source not in sources:
            _check_source(row, names, source, config)
            sources.add(source)
        try:
            items.append(_example(row, names, source, number, config))
        except BadRow as error:
            bad.append((source, number, error))
    return _checked(tuple(items), bad, Counter(), config.on_bad)


def _checked(
    items: tuple[Example, ...],
    bad: Sequence[tuple[str, int, BadRow]],
    skipped: Counter[str],
    on_bad: str,
) -> Examples:
    if bad and on_bad == "fail":
        shown = [f"{source} row {row}: {error}" for source, row, error in bad[:_SHOWN]]
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{'; '.join(shown)}{more}. Correct these rows, or leave them out with --on-bad skip"
        )
    skipped.update(error.reason for _, _, error in bad)
    if not items:
        counts = ", ".join(f"{n} {reason}" for reason, n in skipped.items())
        raise DataError(f"no example is left to evaluate on; left out: {counts or 'nothing'}")
    return Examples(items=items, skipped=dict(skipped))


def _check_source(
    row: Mapping[str, Any], names: Mapping[str, str], source: str, config: EvaluateConfig
) -> None:
    """Refuse a whole file by the columns of its first row."""
    for setting in ("references_column", "label_column"):
        column = getattr(config, setting)
        if column is not None and column not in row:
            found = ", ".join(map(str, row)) or "none"
            raise DataError(
                f"{source}: expected the column {column!r} that {setting} names; found: {found}"
            )
    check_columns(_answered(row, names, ("",)) if config.references_column else row, names, source)


def _example(
    row: Mapping[str, Any], names: Mapping[str, str], source: str, number: int, c: EvaluateConfig
) -> Example:
    references: tuple[str, ...] | None = None
    if c.references_column is not None:
        references = _texts(row.get(c.references_column), c.references_column)
    noun = question(
        read_noun(row if references is None else _answered(row, names, references), names)
    )
    if references is None:
        output = row.get(names.get("output", "output"))
        several = isinstance(noun, Instruction) and isinstance(output, list)
        references = _texts(output if several else _gold(noun), "output")
    return Example(
        noun=noun,
        references=references,
        label=_label(row, references[0], c) if c.label_words else None,
        source=source,
        row=number,
    )


def _texts(value: Any, column: str) -> tuple[str, ...]:
    """One reference or several, none of them empty."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise BadRow("empty reference", f"{column} is an empty list of references")
    for text in texts:
        if not isinstance(text, str):
            raise BadRow("wrong type", f"{column}: expected text, found {type(text).__name__}")
        if not text.strip():
            raise BadRow("empty reference", f"{column}: expected a reference with text, found none")
    return tuple(texts)


def _answered(
    row: Mapping[str, Any], names: Mapping[str, str], references: Sequence[str]
) -> dict[str, Any]:
    """The row with the first reference as its gold response, whatever response it has."""
    gold = references[0]
    prompt, completion, output = (
        names.get(name, name) for name in ("prompt", "completion", "output")
    )
    turn = {"role": "assistant", "content": gold}
    answer = [turn] if isinstance(row.get(prompt), list) else gold
    filled = {**row, completion: answer, output: gold}
    for name, last in (("messages", turn), ("conversations", {"from": "gpt", "value": gold})):
        turns = row.get(names.get(name, name))
        if isinstance(turns, list) and turns:
            filled[names.get(name, name)] = [*_asking(turns, next(iter(last))), last]
    return filled


def _asking(turns: list[Any], speaker: str) -> list[Any]:
    """Turns without a response at their end, by the key that says whose a turn is."""
    last = turns[-1].get(speaker) if isinstance(turns[-1], dict) else None
    answered = isinstance(last, str) and SHAREGPT.get(last) == "assistant"
    return turns[:-1] if answered else turns


def _gold(noun: Noun) -> str:
    """The text of the response."""
    if isinstance(noun, Chat):
        assert noun.prompt_messages is not None, "set by `question`"
        turns = noun.messages[noun.prompt_messages :]
        return "\n".join(turn.content for turn in turns if turn.role == "assistant")
    assert isinstance(noun, PromptCompletion | Instruction), "what `question` leaves"
    return noun.completion if isinstance(noun, PromptCompletion) else noun.output


def _label(row: Mapping[str, Any], reference: str, config: EvaluateConfig) -> int:
    """Number of the label word that is true."""
    words = [word.strip() for word in config.label_words]
    found = reference if config.label_column is None else row.get(config.label_column)
    if str(found).strip() not in words:
        raise BadRow(
            "unknown label", f"expected one of {', '.join(words)}; found {str(found)[:80]!r}"
        )
    return words.index(str(found).strip())
