"""Rows as examples: references of every layout, labels, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_rows

from cachekd.config import EvaluateConfig
from cachekd.data.nouns import Chat, Instruction, PromptCompletion
from cachekd.errors import DataError
from cachekd.evaluation.examples import Example, Examples, read_examples

Read = Callable[..., Examples]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def run(rows: list[dict[str, Any]], **settings: Any) -> Examples:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        return read_examples(EvaluateConfig(model=("m",), data=(str(path),), **settings))

    return run


def only(found: Examples) -> Example:
    (item,) = found.items
    return item


def test_all_references_of_an_output_list_count(read: Read) -> None:
    found = only(read([{"instruction": "i", "output": ["one", "two"]}]))
    assert found.references == ("one", "two")
    assert found.noun.output == "one"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "i", "output": "a"},
        {"prompt": "p", "completion": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
    ],
)
def test_the_response_is_the_reference(read: Read, row: dict[str, Any]) -> None:
    assert only(read([row])).references == ("a",)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p"},
        {"instruction": "i"},
        {"prompt": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}]},
    ],
)
def test_references_may_stand_in_a_column_of_their_own(read: Read, row: dict[str, Any]) -> None:
    row = {**row, "refs": ["a", "b"]}
    assert only(read([row], references_column="refs")).references == ("a", "b")


@pytest.mark.parametrize(
    "row",
    [
        *({"prompt": "p", "completion": own} for own in ("own", "", None)),
        *({"instruction": "p", "output": own} for own in ("own", "", None, [], ["own"])),
        {"prompt": [{"role": "user", "content": "p"}], "completion": None},
        {
            "prompt": [{"role": "user", "content": "p"}],
            "completion": [{"role": "assistant", "content": "own"}],
        },
        {"messages": [{"role": "user", "content": "p"}]},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "own"}]},
        {"conversations": [{"from": "human", "value": "p"}]},
        *(
            {"conversations": [{"from": "human", "value": "p"}, {"from": name, "value": own}]}
            for name, own in (("gpt", "own"), ("assistant", ""), ("chatbot", "own"))
        ),
    ],
)
def test_the_first_reference_is_gold_whatever_response_stands_beside_it(
    read: Read, row: dict[str, Any]
) -> None:
    found = only(read([{**row, "refs": ["a", "b"]}], references_column="refs"))
    assert found.references == ("a", "b")
    if isinstance(found.noun, Chat):
        assert [turn.content for turn in found.noun.messages] == ["p", "a"]
        assert found.noun.prompt_messages == 1
    elif isinstance(found.noun, Instruction):
        assert (found.noun.instruction, found.noun.output) == ("p", "a")
    else:
        assert isinstance(found.noun, PromptCompletion)
        assert (found.noun.prompt, found.noun.completion) == ("p", "a")


def test_a_label_may_be_the_response_beside_the_references(read: Read) -> None:
    row = {"instruction": "p", "output": "yes", "refs": ["no", "yes"]}
    words = {"label_words": ("no", "yes"), "references_column": "refs"}
    assert only(read([row], **words)).label == 0
    assert only(read([row], **words, label_column="output")).label == 1


def test_labels_are_the_reference_or_a_column(read: Read) -> None:
    words = {"label_words": ("no", "yes")}
    rows = [{"prompt": "p", "completion": " yes\n", "truth": "no"}]
    assert only(read(rows, **words)).label == 1
    assert only(read(rows, **words, label_column="truth")).label == 0
    with pytest.raises(DataError, match="expected one of no, yes; found 'maybe'"):
        read([{"prompt": "p", "completion": "maybe"}], **words)


def test_bad_rows_are_all_named_or_counted(read: Read) -> None:
    good = {"instruction": "i", "output": "fine"}
    bad = [
        {"instruction": "i", "output": []},
        {"instruction": "i", "output": ["one", "  "]},
        {"instruction": "i", "output": "  "},
        {"instruction": "i", "output": ["one", 2]},
    ]
    with pytest.raises(DataError) as refused:
        read([good, *bad])
    for row in range(1, 5):
        assert f"rows.jsonl row {row}: " in str(refused.value)
    assert "--on-bad skip" in str(refused.value)
    found = read([*bad, good], on_bad="skip")
    assert len(found.items) == 1
    assert sum(found.skipped.values()) == 4 and found.skipped["empty reference"] == 1


def test_many_bad_rows_are_named_in_part(read: Read) -> None:
    with pytest.raises(DataError, match="and 4 more"):
        read([{"instruction": "i", "output": " "}] * 9)


def test_nothing_left_is_an_error(read: Read) -> None:
    with pytest.raises(DataError, match="no example is left to evaluate on; left out: 1 empty"):
        read([{"instruction": "i", "output": " "}], on_bad="skip")
