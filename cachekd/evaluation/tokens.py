"""Examples as the tokens of one model: prompts, gold responses, label words.

In: `Examples`, a tokenizer, and the protocol. Out: `Tokens`. Text becomes tokens as for training
(`cachekd.data.encoding`): the response is the suffix after the prompt's own tokens, with the end
token of the tokenizer or of the template. Long prompts are cut on the side that the protocol names,
responses at their end, and both are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import EvaluateConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.chat import Rendering, Stretch
from cachekd.data.documents import Document, Text, document, wording
from cachekd.data.encoding import Encoded, encode, make_encoder
from cachekd.data.nouns import BadRow
from cachekd.errors import ConfigError
from cachekd.evaluation.examples import Example, data_config
from cachekd.types import Int32, Role


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """One example for one model.

    Attributes:
        prompt: int32 [P], P >= 1, cut.
        response: gold response, int32 [n], n >= 1, cut, its end token among them.
        judged: response tokens that the loss is over, bool [n]: not those that a template adds
            behind the end of the turn.
        length: tokens of the whole response that are text: neither cut, nor special at its end.
        end: the special token that the gold response ends with, or None.
        labels: tokens of each label word after this prompt.
        prompt_cut, response_cut: whether something was cut.
    """

    prompt: Int32
    response: Int32
    judged: NDArray[np.bool_]
    length: int
    end: int | None
    labels: tuple[Int32, ...]
    prompt_cut: bool
    response_cut: bool


def tokenise(
    examples: Sequence[Example], tokenizer: Any, config: EvaluateConfig, clock: datetime
) -> list[Tokens | BadRow]:
    """The tokens of each example, or what is wrong with it.

    Args:
        examples: what is evaluated on.
        tokenizer: the model's.
        config: protocol, template and label words.
        clock: the time that chat templates are told.

    Raises:
        ConfigError: the tokens of a label word are how those of another begin.
        DataError: there is no template where one is needed.
    """
    style = wording(data_config(config), tokenizer, clock)
    documents: list[Document | BadRow] = []
    for example in examples:
        try:
            documents.append(document(example.noun, style))
        except BadRow as error:
            documents.append(error)
    good = [item for item in documents if not isinstance(item, BadRow)]
    gold = iter(encode(good, make_encoder(tokenizer, add_eos=config.add_eos)))
    words = iter(_words(good, tokenizer, config.label_words))
    special = _special(tokenizer)
    found: list[Tokens | BadRow] = []
    for item in documents:
        found.append(
            item if isinstance(item, BadRow) else _tokens(next(gold), next(words), special, config)
        )
    return found


def _special(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text: named ones, and what templates use without a name."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset({*tokenizer.all_special_ids, *(i for i, token in added if token.special)})


def _words(
    documents: Sequence[Document], tokenizer: Any, words: Sequence[str]
) -> list[list[Encoded | BadRow]]:
    """Each label word as the response to each prompt, without an end token."""
    asked = [_with_word(item, word) for item in documents for word in words]
    encoded = encode(asked, make_encoder(tokenizer, add_eos=False))
    count = len(words)
    return [encoded[i * count : (i + 1) * count] for i in range(len(documents))]


def _with_word(item: Document, word: str) -> Document:
    if isinstance(item, Text):
        assert item.prompt is not None, "prompts were asked for"
        return Text(whole=item.prompt + word, prompt=item.prompt)
    assert isinstance(item, Rendering) and item.prompt_end is not None, "the same"
    user, answer = Role.USER, Role.ASSISTANT
    text = item.text[: item.prompt_end] + word
    return Rendering(
        text=text,
        stretches=(
            Stretch(end=item.prompt_end, role=user, merged=user, strict=True),
            Stretch(end=len(text), role=answer, merged=answer, strict=True),
        ),
        prompt_end=item.prompt_end,
    )


def _tokens(
    gold: Encoded | BadRow,
    words: Sequence[Encoded | BadRow],
    special: frozenset[int],
    config: EvaluateConfig,
) -> Tokens | BadRow:
    for part in (gold, *words):
        if isinstance(part, BadRow):
            return part
    assert isinstance(gold, Encoded) and gold.prompt_length is not None, "errors are gone"
    labels = tuple(_label(word) for word in words if isinstance(word, Encoded))
    _check_apart(labels, config.label_words)
    border, most = gold.prompt_length, config.max_prompt_length
    if not border:
        return BadRow("no prompt", "expected a prompt of at least one token, found none")
    ids = gold.ids.astype(np.int32)
    judged = trained_rows(gold.roles, border, LossMask.COMPLETION)[border - 1 :]
    response = ids[border:][: judged.nonzero()[0][-1] + 1]
    text = len(response) - 1 if int(response[-1]) in special else len(response)
    kept = slice(max(border - most, 0), border)
    return Tokens(
        prompt=ids[kept] if config.protocol.truncation_side == "left" else ids[:border][:most],
        response=response[: config.max_new_tokens],
        judged=judged[: len(response)][: config.max_new_tokens],
        length=text,
        end=None if text == len(response) else int(response[-1]),
        labels=labels,
        prompt_cut=border > most,
        response_cut=len(response) > config.max_new_tokens,
    )


def _check_apart(labels: Sequence[Int32], words: Sequence[str]) -> None:
    """Refuse label words of which one is how another begins: it would take that one's mass."""
    tokens = [ids.tolist() for ids in labels]
    for short, word in zip(tokens, words, strict=True):
        for long, other in zip(tokens, words, strict=True):
            if long is not short and long[: len(short)] == short:
                raise ConfigError(
                    f"label_words: the tokens of {word!r} are how those of {other!r} begin, so "
                    "that their probabilities cannot be told apart; choose other words"
                )


def _label(word: Encoded) -> Int32:
    return word.ids[word.prompt_length :].astype(np.int32)
