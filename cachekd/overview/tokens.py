"""Tokens as text: the tokenizer of a cache's teacher, and the part of a text that each token is.

In: a cache and the name of a tokenizer. Out: pieces of text. ``tokenizer.json`` alone is read, by
the tokenizers library: no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachekd.data.models import resolve_model
from cachekd.errors import TeacherError
from cachekd.store.identity import refuse_difference
from cachekd.store.reader import Cache
from cachekd.store.tokenizer import tokenizer_facts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PART_OF_A_CHARACTER = "\ufffd"


def tokenizer_of(cache: Cache, name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer that a cache's token ids are of.

    Args:
        cache: open.
        name: a folder or a hub id.
        revision: of a hub id.

    Raises:
        MismatchError: the cache was made with another; names both.
        TeacherError: there is no tokenizer of this name.
    """
    folder = resolve_model(name, revision, weights=False)
    facts = tokenizer_facts(folder)
    refuse_difference(
        "report",
        {"tokenizer": cache.identity.source["tokenizer"]},
        {"tokenizer": facts.digest},
        f"the cache {cache.url}",
        f"the tokenizer {name}",
    )
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise TeacherError(f"{folder / 'tokenizer.json'} cannot be loaded: {error}") from error


def pieces(tokenizer: Tokenizer | None, ids: Sequence[int]) -> tuple[str, ...]:
    """Text of each token within its text; its id in brackets where it has none of its own.

    A character may be made of several tokens: it is shown by the last of them. Without a tokenizer
    all tokens are shown by their ids.
    """
    if tokenizer is None:
        return tuple(f"{token} " for token in ids)
    found, before = [], ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:stop]), skip_special_tokens=False)
        own = text[len(before) :] if text.startswith(before) else ""
        if own and not own.endswith(_PART_OF_A_CHARACTER):
            found.append(own)
            before = text
        else:
            found.append(f"⟨{ids[stop - 1]}⟩")
    return tuple(found)
