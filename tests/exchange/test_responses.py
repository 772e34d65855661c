"""Responses of servers: prompts that are rendered again, and choices beside a broken one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from exchanging import brought_in, write_lines
from tiny import Family

from cachekd import open_cache
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import _look
from cachekd.objectives import build
from cachekd.training.checks import check_needs

TEMPLATE = (
    "{% if tools %}{{ tools[0]['name'] }}{% endif %}{% if think %}the{% endif %}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "a b"}]


def answer(token: int = 7) -> dict[str, Any]:
    """A choice of one token, scored."""
    place = {"token": f"token_id:{token}", "logprob": -0.5}
    return {"logprobs": {"content": [{**place, "top_logprobs": [place]}]}}


@pytest.fixture
def templated(family: Family, tmp_path: Path) -> Family:
    """The family with a template that knows of tools and of a setting."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(family.teacher, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Family(folder, family.student, family.vocab)


def prompt_of(source: Path, family: Family, cache: Path) -> list[int]:
    brought_in(source, family, cache, format="openai")
    record = open_cache(str(cache))[0]
    return record.input_ids[: record.prompt_length].tolist()


@pytest.mark.parametrize(
    ("further", "text"),
    [
        ({}, "a b"),
        ({"tools": [{"name": "of", "type": "function"}]}, "ofa b"),
        ({"chat_template_kwargs": {"think": True}}, "thea b"),
    ],
)
def test_a_request_is_rendered_as_it_was_asked(
    further: dict[str, Any], text: str, templated: Family, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(templated.teacher)(text, add_special_tokens=False)
    line = {"request": {"messages": MESSAGES, **further}, "choices": [answer()]}
    line["usage"] = {"prompt_tokens": len(expected["input_ids"])}
    path = write_lines(tmp_path / "a.jsonl", [line])
    assert prompt_of(path, templated, tmp_path / "in") == expected["input_ids"]


@pytest.mark.parametrize(
    ("further", "usage", "found"),
    [
        ({}, 99, r"the messages are \d+ tokens .* counted 99"),
        ({"chat_template": "x"}, None, "sets chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, None, "chat_template_kwargs of a template"),
        ({"chat_template_kwargs": "x"}, None, "chat_template_kwargs of a template"),
    ],
)
def test_a_prompt_of_other_tokens_is_refused(
    further: dict[str, Any], usage: int | None, found: str, templated: Family, tmp_path: Path
) -> None:
    line = {"messages": MESSAGES, "choices": [answer()], "usage": {"prompt_tokens": usage}}
    path = write_lines(tmp_path / "a.jsonl", [{**line, **further}])
    with pytest.raises(DataError, match=found):
        brought_in(path, templated, tmp_path / "in", format="openai")


def test_choices_beside_a_broken_one_are_kept(family: Family, tmp_path: Path) -> None:
    """Four choices, of which the second is none: one is left out, and counted."""
    choices = [answer(7), {"logprobs": {"content": [{"token": 5}]}}, answer(8), answer(9)]
    path = write_lines(tmp_path / "a.jsonl", [{"prompt_token_ids": [3, 4], "choices": choices}])
    report = brought_in(path, family, tmp_path / "in", format="openai", on_bad="skip")
    assert sum(report["documents_left_out"].values()) == 1
    found = {record.input_ids.tolist()[-1] for record in open_cache(str(tmp_path / "in"))}
    assert found == {7, 8, 9}


def test_next_tokens_that_are_all_told_are_no_bounds(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two documents tell theirs; the third is too unlikely for the server to say."""
    monkeypatch.setattr(_look, "_LOOKED_AT", 2)
    lines = [{"prompt_token_ids": [3, 4], "choices": [answer(token)]} for token in (7, 8, 9)]
    told = write_lines(tmp_path / "told.jsonl", lines)
    report = brought_in(told, family, tmp_path / "told", format="openai")
    assert report["imported"]["next_logprob"] == "stored"
    check_needs(build("dkd", {}).needs(), [open_cache(str(tmp_path / "told"))])
    place = lines[2]["choices"][0]["logprobs"]["content"][0]
    place |= {"logprob": -9999.0, "top_logprobs": [{"token": "token_id:5", "logprob": -0.5}]}
    path = write_lines(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError, match=r"row 2: .*not told.*--next-logprob bound"):
        brought_in(path, family, tmp_path / "strict", format="openai")
    settings = {"format": "openai", "next_logprob": "bound"}
    report = brought_in(path, family, tmp_path / "in", **settings)
    assert report["imported"]["next_logprob"] == "bound where it is no entry"
    with pytest.raises(ConfigError, match="log-probability is a bound"):
        check_needs(build("dkd", {}).needs(), [open_cache(str(tmp_path / "in"))])
