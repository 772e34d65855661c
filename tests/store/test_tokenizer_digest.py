"""The digest of a tokenizer: what changes token ids changes it, and nothing else does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family

from cachekd.errors import TeacherError
from cachekd.store.tokenizer import tokenizer_facts

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def tokenizer(family: Family, tmp_path: Path) -> Callable[[Change], Any]:
    """Facts of the family's tokenizer after a change of its file."""
    original = json.loads((family.teacher / "tokenizer.json").read_text())

    def facts(change: Change) -> Any:
        raw = copy.deepcopy(original)
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        return tokenizer_facts(tmp_path)

    return facts


def swap_ids(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    a, b = list(vocab)[40:42]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def rename_token(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    vocab["zzzz"] = vocab.pop(list(vocab)[-1])


def swap_merges(raw: dict[str, Any]) -> None:
    merges = raw["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def added(raw: dict[str, Any], **fields: Any) -> None:
    raw["added_tokens"][0].update(fields)


def add_token(raw: dict[str, Any]) -> None:
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 320, "content": "<|new|>"})


CHANGES: dict[str, Change] = {
    "a token was added": add_token,
    "two ids are swapped": swap_ids,
    "a token has another text": rename_token,
    "merges in another order": swap_merges,
    "a merge is missing": lambda raw: raw["model"]["merges"].pop(),
    "a normaliser": lambda raw: raw.update(normalizer={"type": "NFC"}),
    "another pre-tokeniser": lambda raw: raw["pre_tokenizer"].update(add_prefix_space=True),
    "no pre-tokeniser": lambda raw: raw.update(pre_tokenizer=None),
    "an added token is not special": lambda raw: added(raw, special=False),
    "an added token strips": lambda raw: added(raw, lstrip=True),
    "an added token is another text": lambda raw: added(raw, content="<|EOS|>"),
    "bytes fall back": lambda raw: raw["model"].update(byte_fallback=True),
    "merges are ignored": lambda raw: raw["model"].update(ignore_merges=True),
    "another suffix": lambda raw: raw["model"].update(end_of_word_suffix="</w>"),
}
NO_CHANGES: dict[str, Change] = {
    "post-processor": lambda raw: raw.update(post_processor={"type": "ByteLevel"}),
    "truncation": lambda raw: raw.update(truncation={"max_length": 7}),
    "padding": lambda raw: raw.update(padding={"strategy": "BatchLongest"}),
    "decoder": lambda raw: raw.update(decoder=None),
    "version": lambda raw: raw.update(version="9.9"),
    "merges as text": lambda raw: raw["model"].update(
        merges=[" ".join(merge) for merge in raw["model"]["merges"]]
    ),
    "vocabulary in another order": lambda raw: raw["model"].update(
        vocab=dict(reversed(raw["model"]["vocab"].items()))
    ),
    "added tokens in another order": lambda raw: raw["added_tokens"].reverse(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_tokens_changes_the_digest(
    family: Family, tokenizer: Callable[[Change], Any], name: str
) -> None:
    assert tokenizer(CHANGES[name]).digest != tokenizer_facts(family.teacher).digest


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_does_not_change_the_tokens_does_not_change_the_digest(
    family: Family, tokenizer: Callable[[Change], Any], name: str
) -> None:
    assert tokenizer(NO_CHANGES[name]) == tokenizer_facts(family.teacher)


def test_only_the_tokenizer_file_counts(
    family: Family, copy_of: Callable[[Path, str], Path]
) -> None:
    folder = copy_of(family.teacher, "other")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").unlink()
    assert tokenizer_facts(folder) == tokenizer_facts(family.teacher)


def test_unigram_scores_are_part_of_the_tokenizer(tmp_path: Path) -> None:
    digests = set()
    for score in (-1.0, -2.0):
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", score]]}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
        facts = tokenizer_facts(tmp_path)
        assert facts.vocab_size == 2
        digests.add(facts.digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "not json", '{"model": {"vocab": {}}, "added_tokens": []}',
     '{"model": {"vocab": {"a": 0}}, "added_tokens": [{}]}'],
)  # fmt: skip
def test_what_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TeacherError, match=r"tokenizer\.json is not a tokenizer file"):
        tokenizer_facts(tmp_path)


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"has no tokenizer\.json.*--tokenizer, or save one"):
        tokenizer_facts(tmp_path)


def test_a_file_of_an_older_serialiser_is_the_same_tokenizer(
    tokenizer: Callable[[Change], Any],
) -> None:
    """Older versions left out keys that newer ones write with their defaults."""

    def older(raw: dict[str, Any]) -> None:
        for key in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout"):
            raw["model"].pop(key, None)
        raw["pre_tokenizer"].pop("use_regex")

    def without_regex(raw: dict[str, Any]) -> None:
        raw["pre_tokenizer"]["use_regex"] = False

    same = tokenizer(lambda raw: None)
    assert tokenizer(older) == same
    assert tokenizer(without_regex) != same
