"""Which layout a row has, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cachekd.data.columns import (
    check_columns,
    column_map,
    read_domain,
    read_noun,
    read_weight,
)
from cachekd.data.nouns import (
    BadRow,
    Chat,
    Instruction,
    Message,
    PlainText,
    PromptCompletion,
    Tokens,
)
from cachekd.errors import ConfigError, DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = (Message(role="user", content="q"), Message(role="assistant", content="a"))


def reason(row, names=None):
    with pytest.raises(BadRow) as caught:
        read_noun(row, names or {})
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    ("row", "noun"),
    [
        ({"messages": [USER, ANSWER]}, Chat(messages=TURNS)),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            Chat(messages=TURNS),
        ),
        ({"prompt": "q", "completion": "a"}, PromptCompletion(prompt="q", completion="a")),
        ({"prompt": [USER], "completion": [ANSWER]}, Chat(messages=TURNS, prompt_messages=1)),
        (
            {"instruction": "q", "output": ["a", "b"]},
            Instruction(instruction="q", input="", history=(), output="a"),
        ),
        (
            {"instruction": "q", "input": "i", "output": "a", "history": ["u", "v"]},
            Instruction(instruction="q", input="i", history=(("u", "v"),), output="a"),
        ),
        (
            {"instruction": "q", "input": None, "output": "a", "history": [["u", "v"]]},
            Instruction(instruction="q", input="", history=(("u", "v"),), output="a"),
        ),
        ({"text": " t "}, PlainText(text=" t ")),
    ],
)
def test_layouts(row, noun):
    assert read_noun(row, {}) == noun


def test_first_match_wins():
    row = {
        "messages": [USER, ANSWER],
        "prompt": "p",
        "completion": "c",
        "instruction": "i",
        "output": "o",
        "text": "t",
    }
    expected = [Chat, PromptCompletion, Instruction, PlainText]
    found = []
    for drop in (None, "messages", "prompt", "output"):
        row.pop(drop, None)
        found.append(type(read_noun(row, {})))
    assert found == expected


def test_a_layout_without_values_gives_way_to_the_next():
    assert read_noun({"messages": None, "text": "t"}, {}) == PlainText(text="t")


def test_token_ids():
    noun = read_noun({"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}, {})
    assert isinstance(noun, Tokens)
    assert np.array_equal(noun.input_ids, [1, 2, 3])
    assert np.array_equal(noun.labels, [-100, 2, -100])
    assert read_noun({"input_ids": [1, 2], "labels": None}, {}).labels is None


@pytest.mark.parametrize(
    ("sharegpt", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatbot", "assistant"),
        ("assistant", "assistant"),
        ("system", "system"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
    ],
)
def test_sharegpt_roles(sharegpt, role):
    noun = read_noun({"conversations": [{"from": sharegpt, "value": "x"}]}, {})
    assert noun.messages[0].role == role


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    noun = read_noun({"messages": [{"role": "user", "content": parts}]}, {})
    assert noun.messages[0].content == "ab"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"other": 1}, "missing column"),
        ({"prompt": "p"}, "missing column"),
        ({"text": None}, "missing value"),
        ({"text": ""}, "empty text"),
        ({"text": " \n"}, "empty text"),
        ({"text": 3}, "wrong type"),
        ({"prompt": "p", "completion": " "}, "empty text"),
        ({"prompt": [USER], "completion": "c"}, "wrong type"),
        ({"prompt": [USER], "completion": []}, "empty text"),
        ({"prompt": [USER], "completion": [USER]}, "unknown role"),
        ({"instruction": "i", "output": []}, "empty text"),
        ({"instruction": "i", "output": [None]}, "wrong type"),
        ({"instruction": "i", "output": "\t"}, "empty text"),
        ({"instruction": "i", "input": 1, "output": "o"}, "wrong type"),
        ({"instruction": "i", "output": "o", "history": "h"}, "wrong type"),
        ({"instruction": "i", "output": "o", "history": ["h"]}, "wrong type"),
        ({"instruction": "i", "output": "o", "history": [["h"]]}, "wrong type"),
        ({"instruction": "i", "output": "o", "history": [["h", 1]]}, "wrong type"),
        ({"instruction": "i", "output": "o", "history": ["h", " "]}, "empty text"),
        ({"messages": []}, "empty text"),
        ({"messages": "hello"}, "wrong type"),
        ({"messages": ["hello"]}, "wrong type"),
        ({"messages": [{"content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "missing value"),
        ({"messages": [{"role": "user", "content": 1}]}, "wrong type"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "wrong type"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "empty text"),
        ({"messages": [{**ANSWER, "tool_calls": [{"name": "f"}]}]}, "not text"),
        ({"conversations": [{"from": "model", "value": "x"}]}, "unknown role"),
        ({"input_ids": "1 2"}, "wrong type"),
        ({"input_ids": [1, "2"]}, "wrong type"),
        ({"input_ids": [1, True]}, "wrong type"),
        ({"input_ids": [1, 2**70]}, "wrong type"),
        ({"input_ids": [1, 2], "labels": [1]}, "bad labels"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "bad labels"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "bad labels"),
    ],
)
def test_bad_rows_have_a_reason(row, expected):
    assert reason(row) == expected


def test_mapped_columns_override(settings):
    names = column_map(settings(columns={"output": "answer", "instruction": "question"}))
    row = {"question": "q", "answer": "a", "output": "other", "text": "t", "messages": [USER]}
    assert read_noun(row, names) == Instruction(instruction="q", input="", history=(), output="a")
    assert reason({"question": "q", "text": "t"}, names) == "missing column"


def test_first_row_refuses_the_file():
    with pytest.raises(
        DataError, match=r"a\.csv.*messages.*instruction\+output.*--columns"
    ) as caught:
        check_columns({"question": 1, "answer": 2}, {}, "a.csv")
    assert "question, answer" in str(caught.value)
    assert not isinstance(caught.value, BadRow)
    check_columns({"text": None}, {}, "a.csv")


def test_first_row_must_have_mapped_columns():
    with pytest.raises(DataError, match=r"expected column 'topic'.*found: text"):
        check_columns({"text": "t"}, {"domain": "topic"}, "a.csv")


def test_unknown_name_gets_a_hint(settings):
    with pytest.raises(ConfigError, match="Did you mean 'output'"):
        column_map(settings(columns={"outputs": "x"}))


def test_domain(settings):
    names = column_map(settings(domain_column="topic"))
    assert names == {"domain": "topic"}
    assert read_domain({"topic": "law"}, names) == "law"
    assert read_domain({"topic": 7}, names) == "7"
    assert read_domain({"topic": None}, names) == ""
    assert read_domain({"domain": "law"}, {}) == ""
    with pytest.raises(BadRow, match="wrong type"):
        read_domain({"topic": ["law"]}, names)
    with pytest.raises(ConfigError, match=r"'a'.*'b'"):
        column_map(settings(domain_column="a", columns={"domain": "b"}))


def test_weight_only_when_mapped():
    assert read_weight({"weight": 3}, {}) == 1.0
    assert read_weight({"w": 3}, {"weight": "w"}) == 3.0
    assert read_weight({"w": "0.5"}, {"weight": "w"}) == 0.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "missing value"),
        ("many", "wrong type"),
        (True, "wrong type"),
        ([1], "wrong type"),
        (-1, "bad weight"),
        (float("nan"), "bad weight"),
    ],
)
def test_bad_weights(value, expected):
    with pytest.raises(BadRow) as caught:
        read_weight({"w": value}, {"weight": "w"})
    assert caught.value.reason == expected
