"""Who a tokenizer is: a digest of all that turns text into token ids.

Comes in: a folder with a ``tokenizer.json``. Goes out: `TokenizerFacts`. The file is read as JSON;
no tokenizer library is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachekd.data.digests import json_id
from cachekd.errors import TeacherError

_ADDED_TOKEN_KEYS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MODEL_KEYS = [
    "type",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "unk_id",
    "max_input_chars_per_word",
    "dropout",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """A tokenizer cut to its real vocabulary.

    Attributes:
        digest: over id-to-token map, merges, normaliser, pre-tokeniser and added tokens.
        vocab_size: largest token id plus one.
    """

    digest: str
    vocab_size: int


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Digest and real vocabulary size of the tokenizer in a folder.

    Raises:
        TeacherError: there is no ``tokenizer.json`` or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TeacherError(
            f"{folder} has no tokenizer.json; expected a fast tokenizer beside the model. "
            "Name another folder with --tokenizer, or save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        tokens = _id_to_token(raw)
        vocab_size = 1 + max(index for index, _ in tokens)
        merges = [m.split(" ") if isinstance(m, str) else m for m in raw["model"].get("merges", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TeacherError(f"{path} is not a tokenizer file: {error!r}") from error
    canonical = {
        "tokens": tokens,
        "merges": merges,
        "model": _without_defaults({key: raw["model"].get(key) for key in _MODEL_KEYS}),
        "normalizer": _without_defaults(raw.get("normalizer")),
        "pre_tokenizer": _without_defaults(raw.get("pre_tokenizer")),
        "added_tokens": sorted(
            ([token.get(key) for key in _ADDED_TOKEN_KEYS] for token in raw["added_tokens"]),
            key=lambda token: token[0],
        ),
    }
    return TokenizerFacts(digest=json_id(canonical), vocab_size=vocab_size)


def _without_defaults(value: Any) -> Any:
    """A tokenizer setting as every version of the serialiser means it.

    A key that an older version did not write is what a newer one writes as null or false; only
    ByteLevel's ``use_regex`` is true where it is absent.
    """
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "ByteLevel":
        value = {"use_regex": True, **value}
    return {
        key: _without_defaults(item)
        for key, item in value.items()
        if item is not None and item is not False
    }


def _id_to_token(raw: dict[str, Any]) -> list[tuple[int, str]]:
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, dict):
        tokens = {index: token for token, index in vocabulary.items()}
    else:  # Unigram: a list of [token, score], whose place is its id
        tokens = {index: f"{token}\t{score}" for index, (token, score) in enumerate(vocabulary)}
    tokens.update({token["id"]: token["content"] for token in raw["added_tokens"]})
    return sorted(tokens.items())
