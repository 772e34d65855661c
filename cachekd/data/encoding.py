"""Documents as token ids with roles.

In: documents and a tokenizer. Out: ids, a role for each, and the length of the prompt. A text is
tokenised as a whole; its response is the suffix after the prompt's own tokens, and a row whose
prompt tokens are not how the whole begins is bad (alignment law). Documents come in groups, since
one call of a tokenizer for many texts is much faster than many calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cachekd.data.chat import Rendering, token_roles
from cachekd.data.documents import Document, Text
from cachekd.data.nouns import BadRow, Tokens
from cachekd.types import Int64, Role, UInt8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Table = dict[str, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A tokenizer and what is to be known about it.

    Attributes:
        tokenizer: the tokenizer.
        special: ids of its special tokens.
        suffix: special tokens that it puts behind a text by itself.
        eos: id that ends text, or None.
    """

    tokenizer: PreTrainedTokenizerBase
    special: frozenset[int]
    suffix: int
    eos: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """Token ids [L], their roles [L], and the tokens before the completion or None."""

    ids: Int64
    roles: UInt8
    prompt_length: int | None


def make_encoder(tokenizer: PreTrainedTokenizerBase, *, add_eos: bool) -> Encoder:
    """Look at a tokenizer's special tokens."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return Encoder(
        tokenizer=tokenizer,
        special=frozenset(tokenizer.all_special_ids),
        suffix=list(reversed(mask)).index(0) if 0 in mask else 0,
        eos=tokenizer.eos_token_id if add_eos else None,
    )


def encode(documents: Sequence[Document], encoder: Encoder) -> list[Encoded | BadRow]:
    """Tokenise a group of documents.

    Returns:
        For each document its tokens, or what is wrong with it.
    """
    plain: list[str] = []
    rendered: list[str] = []
    for item in documents:
        if isinstance(item, Text):
            plain += [item.whole] if item.prompt is None else [item.whole, item.prompt]
        elif isinstance(item, Rendering):
            rendered += [item.text, *item.prefixes()]
    plain_table = _tokenise(encoder.tokenizer, plain, special=True)
    chat_table = _tokenise(encoder.tokenizer, rendered, special=False)
    results: list[Encoded | BadRow] = []
    for item in documents:
        try:
            results.append(_encode_one(item, encoder, plain_table, chat_table))
        except BadRow as error:
            results.append(error)
    return results


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, special: bool) -> Table:
    unique = list(dict.fromkeys(texts))
    if not unique:
        return {}
    tokens = tokenizer(
        unique,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return dict(zip(unique, tokens["input_ids"], strict=True))


def _encode_one(item: Document, encoder: Encoder, plain: Table, chat: Table) -> Encoded:
    if isinstance(item, Tokens):
        return _encode_tokens(item)
    if isinstance(item, Rendering):
        ids = chat[item.text]
        roles, prompt_length = token_roles(item, ids, chat, encoder.special)
        return Encoded(
            ids=np.asarray(ids, dtype=np.int64), roles=roles, prompt_length=prompt_length
        )
    return _encode_text(item, encoder, plain)


def _encode_tokens(item: Tokens) -> Encoded:
    if item.labels is None:
        roles = np.full(len(item.input_ids), Role.TEXT, dtype=np.uint8)
    else:
        roles = np.where(item.labels == -100, Role.USER, Role.ASSISTANT).astype(np.uint8)
    return Encoded(ids=item.input_ids, roles=roles, prompt_length=None)


def _encode_text(item: Text, encoder: Encoder, table: Table) -> Encoded:
    whole = table[item.whole]
    prompt_length = None
    if item.prompt is not None:
        own = table[item.prompt]
        own = own[: len(own) - encoder.suffix]
        body = whole[: len(whole) - encoder.suffix]
        if body[: len(own)] != own:
            raise BadRow(
                "tokens merge across the border",
                f"a token spans the end of the prompt {item.prompt[-40:]!r} and the response "
                f"{item.whole[len(item.prompt) :][:40]!r}",
            )
        if len(body) == len(own):
            raise BadRow("empty text", "the response has no tokens")
        prompt_length = len(own)
    if encoder.eos is not None and (not whole or whole[-1] != encoder.eos):
        whole = [*whole, encoder.eos]
    roles = np.full(len(whole), Role.TEXT, dtype=np.uint8)
    if prompt_length is not None:
        roles[:prompt_length] = Role.USER
        roles[prompt_length:] = Role.ASSISTANT
    return Encoded(ids=np.asarray(whole, dtype=np.int64), roles=roles, prompt_length=prompt_length)
