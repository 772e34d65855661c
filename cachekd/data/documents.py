"""Nouns as documents: what is tokenised, with the border between prompt and response.

In: a `Noun` and the wording that the settings and the tokenizer ask for. Out: a `Document`: text, a
rendered conversation, or token ids that were there from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cachekd.config import DataConfig
from cachekd.data.chat import Render, Rendering, render_chat, renderer
from cachekd.data.nouns import Chat, Instruction, Noun, PlainText, PromptCompletion, Tokens
from cachekd.data.prompts import alpaca, conversation, plain
from cachekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text whose first ``len(prompt)`` characters are the prompt, or without one (None)."""

    whole: str
    prompt: str | None


Document = Text | Rendering | Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How instructions become text, and how conversations do (None: they cannot)."""

    form: str
    render: Render | None


def wording(config: DataConfig, tokenizer: PreTrainedTokenizerBase, clock: datetime) -> Wording:
    """What the settings and the tokenizer say about wording.

    Raises:
        ConfigError: the template file cannot be read.
        DataError: a chat template is asked for and there is none.
    """
    template = _template(config, tokenizer)
    form = config.prompt_template
    if form == "auto":
        form = "alpaca" if template is None else "chat"
    if form == "chat" and template is None:
        raise DataError(f"prompt_template is chat, but {_NO_TEMPLATE}")
    render = None if template is None else renderer(tokenizer, template, clock)
    return Wording(form=form, render=render)


def document(noun: Noun, style: Wording) -> Document:
    """The text of a noun.

    Raises:
        BadRow: the chat template cannot be used on this conversation.
        DataError: a conversation without a chat template.
    """
    if isinstance(noun, Tokens):
        return noun
    if isinstance(noun, PlainText):
        return Text(whole=noun.text, prompt=None)
    said = _FORMS[style.form](noun) if isinstance(noun, Instruction) else noun
    if isinstance(said, PromptCompletion):
        return Text(whole=said.prompt + said.completion, prompt=said.prompt)
    if style.render is None:
        raise DataError(f"the data holds conversations, but {_NO_TEMPLATE}")
    return render_chat(said, style.render)


def _template(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    path = config.chat_template_path
    if path is not None:
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template_path: {path} cannot be read: {error}") from error
    if tokenizer.chat_template is None:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigError(
            f"the tokenizer has several chat templates and none is its default: {error}. "
            "Choose one with --chat-template-path"
        ) from error


_NO_TEMPLATE = (
    "the tokenizer has no chat template; give one with --chat-template-path FILE "
    "(a Jinja file), or use a tokenizer that has one"
)
_FORMS: dict[str, Callable[[Instruction], Chat | PromptCompletion]] = {
    "alpaca": alpaca,
    "plain": plain,
    "chat": conversation,
}
