"""Token ids of the texts and bytes that servers tell, and of prompts.

Comes in: the tokenizer's folder. Goes out: ids. Bytes name a token that is a part of a character,
whose text does not. A tokenizer library is loaded when a token has to be looked up, and not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_ID = "token_id:"
_OTHER = ("chat_template", "documents", "continue_final_message", "reasoning_effort")
_SPACE = "▁"  # how sentence pieces write a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # and a single byte


class Vocabulary:
    """The tokenizer of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def id_of(self, text: Any, data: Any = None) -> int:
        """The id of a token, by its bytes if they are told, else by its text.

        Args:
            text: of the token; ``token_id:<n>`` is what vLLM writes instead if asked to.
            data: its bytes as whole numbers, or None.

        Raises:
            ValueError: no token, or more than one, has this text and these bytes.
        """
        if not isinstance(text, str):
            raise ValueError(f"expected the text of a token; found {text!r:.80}")
        if text.startswith(_ID) and text[len(_ID) :].isdigit():
            return int(text[len(_ID) :])
        by_bytes = () if data is None else self._by_bytes.get(_bytes(data), ())
        if len(by_bytes) == 1:
            return by_bytes[0]
        ids = self._by_text.get(text, ())
        if len(ids) != 1:
            raise ValueError(
                f"{len(ids) or 'no'} tokens of the tokenizer have the text {text!r:.80}"
                + ("" if data is None else f" or the bytes {data!r:.80}")
                + ": it is another tokenizer, or a text that names no single token; ask vLLM with "
                "return_tokens_as_token_ids"
            )
        return ids[0]

    def prompt(self, request: Mapping[str, Any]) -> list[int]:
        """Token ids of a request's text or messages, up to where the answer begins.

        Args:
            request: with ``messages`` or ``prompt``; its ``tools`` and ``chat_template_kwargs`` are
                given to the template.

        Raises:
            ValueError: they are no messages, there is no template, or the request asks for
                another.
        """
        if not isinstance(request.get("messages"), list):
            return self._text(request.get("messages", request.get("prompt")))
        if other := [name for name in _OTHER if request.get(name) not in (None, False)]:
            raise ValueError(
                f"the request sets {', '.join(other)}, which this template is not told of; ask "
                "vLLM with return_token_ids"
            )
        further = request.get("chat_template_kwargs") or {}
        known = signature(self._tokenizer.apply_chat_template).parameters
        if not isinstance(further, Mapping) or {*further} & {*known}:
            raise ValueError(f"expected chat_template_kwargs of a template; found {further!r:.80}")
        try:
            text = self._tokenizer.apply_chat_template(
                request["messages"],
                tools=request.get("tools"),
                tokenize=False,
                add_generation_prompt=True,
                **further,
            )
        except Exception as error:  # a template raises errors of any kind
            raise ValueError(f"the messages cannot be put into the template: {error}") from error
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    def _text(self, prompt: Any) -> list[int]:
        """Token ids of a prompt that is text, or that is token ids already."""
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            return list(prompt)
        if not isinstance(prompt, str):
            raise ValueError(f"expected a prompt of text or of token ids; found {prompt!r:.80}")
        return [int(token) for token in self._tokenizer(prompt)["input_ids"]]

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder)

    @cached_property
    def _by_text(self) -> Mapping[str, tuple[int, ...]]:
        return self._looked_up(lambda token, number: token.replace(_SPACE, " "), self._decoded)

    @cached_property
    def _by_bytes(self) -> Mapping[bytes, tuple[int, ...]]:
        return self._looked_up(_piece_bytes, lambda token, number: _level_bytes(token))

    def _looked_up(
        self, of_piece: Callable[[str, int], _Name], of_other: Callable[[str, int], _Name]
    ) -> dict[_Name, tuple[int, ...]]:
        """Ids of all tokens by a name, which is made otherwise where tokens are sentence pieces."""
        tokens = self._tokenizer.get_vocab()
        name = of_piece if any(token.startswith(_SPACE) for token in tokens) else of_other
        found: dict[_Name, tuple[int, ...]] = {}
        for token, number in tokens.items():
            own = name(token, number)
            found[own] = (*found.get(own, ()), number)
        return found

    def _decoded(self, token: str, number: int) -> str:
        return str(self._tokenizer.decode([number], clean_up_tokenization_spaces=False))


def _bytes(data: Any) -> bytes:
    if not isinstance(data, list) or not all(type(one) is int and 0 <= one < 256 for one in data):
        raise ValueError(f"expected the bytes of a token; found {data!r:.80}")
    return bytes(data)


def _piece_bytes(token: str, number: int) -> bytes:
    """Bytes of a sentence piece."""
    match = _BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode()


def _level_bytes(token: str) -> bytes:
    """Bytes of a token whose letters each stand for a byte, or of its text."""
    if all(letter in _LETTERS for letter in token):
        return bytes(_LETTERS[letter] for letter in token)
    return token.encode()


def _letters() -> dict[str, int]:
    """The byte that each letter of byte-level vocabularies stands for: itself, if it is printed."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    moved = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in own} | moved


_LETTERS = _letters()
