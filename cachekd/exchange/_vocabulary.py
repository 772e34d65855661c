"""Token ids of the texts that servers tell, and of prompts.

Comes in: the tokenizer's folder. Goes out: ids. A tokenizer library is loaded when a text has to be
looked up, and not before.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

_ID = "token_id:"
_SPACE = "▁"  # how sentence pieces write a space


class Vocabulary:
    """The tokenizer of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def id_of(self, text: Any) -> int:
        """The id of a token's text; ``token_id:<n>`` is what vLLM writes instead if asked to.

        Raises:
            ValueError: no token, or more than one, has this text.
        """
        if not isinstance(text, str):
            raise ValueError(f"expected the text of a token; found {text!r:.80}")
        if text.startswith(_ID) and text[len(_ID) :].isdigit():
            return int(text[len(_ID) :])
        ids = self._by_text.get(text, ())
        if len(ids) != 1:
            raise ValueError(
                f"{len(ids) or 'no'} tokens of the tokenizer have the text {text!r:.80}: it is "
                "another tokenizer, or a text that names no single token; ask vLLM with "
                "return_tokens_as_token_ids"
            )
        return ids[0]

    def prompt(self, messages: Any) -> list[int]:
        """Token ids of a chat's messages, up to where the answer begins.

        Raises:
            ValueError: they are no messages, or there is no template.
        """
        if isinstance(messages, str):
            ids = self._tokenizer(messages)["input_ids"]
            return [int(token) for token in ids]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template raises errors of any kind
            raise ValueError(f"the messages cannot be put into the template: {error}") from error
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder)

    @cached_property
    def _by_text(self) -> dict[str, tuple[int, ...]]:
        tokens = self._tokenizer.get_vocab()
        pieces = any(token.startswith(_SPACE) for token in tokens)
        found: dict[str, tuple[int, ...]] = {}
        for token, number in tokens.items():
            text = token.replace(_SPACE, " ") if pieces else self._decoded(number)
            found[text] = (*found.get(text, ()), number)
        return found

    def _decoded(self, number: int) -> str:
        return str(self._tokenizer.decode([number], clean_up_tokenization_spaces=False))
