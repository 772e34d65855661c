"""Conversations as text, with the characters that belong to each role.

In: a `Chat`, a tokenizer's chat template, and a clock. Out: a `Rendering`: the whole text, cut into
stretches of one role each. The cuts come from rendering prefixes of the conversation; `token_roles`
carries them over to the tokens of the whole text. A template that rewrites earlier turns, or whose
cuts fall inside a token where it matters, is refused row by row: no span is ever guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from cachekd.data.messages import ROLES
from cachekd.data.nouns import BadRow, Chat, Message
from cachekd.errors import ConfigError
from cachekd.types import Role, UInt8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Render = Callable[[Sequence[Message], bool], str]

# What a template may ask the clock for. "%%" goes first and comes back last, as a character that
# no text holds, so that it never becomes half of another directive.
_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVDeFRT"
_UNPADDED = "dmHIMSjy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Characters of one role, from the end of the stretch before.

    Attributes:
        end: where it ends in the text.
        role: whose tokens they are.
        merged: whose they are if the border before this stretch is not a border of tokens.
        strict: refuse the row if ``end`` is not a border of tokens.
    """

    end: int
    role: Role
    merged: Role
    strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A conversation as text; ``prompt_end`` is where the completion begins, if there is one."""

    text: str
    stretches: tuple[Stretch, ...]
    prompt_end: int | None

    def prefixes(self) -> list[str]:
        """The prefixes of the text whose tokens `token_roles` compares with the whole."""
        return [self.text[: s.end] for s in self.stretches if s.end < len(self.text)]


def renderer(tokenizer: PreTrainedTokenizerBase, template: str, clock: datetime) -> Render:
    """A function (messages, with the header of an answer) -> text.

    Args:
        tokenizer: gives the special tokens to the template.
        template: Jinja text.
        clock: what `strftime_now` in the template tells, so that text does not age.
    """
    if "strftime_now" in template:
        template = _clock_macro(clock) + template

    def render(messages: Sequence[Message], header: bool) -> str:
        from jinja2 import TemplateSyntaxError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            # A list of one conversation, since an empty conversation is refused otherwise.
            rendered = tokenizer.apply_chat_template(
                [turns], chat_template=template, add_generation_prompt=header, tokenize=False
            )
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from error
        except ImportError:
            raise
        except Exception as error:  # a template can raise anything
            raise BadRow("template error", f"{type(error).__name__}: {error}") from error
        return str(rendered[0])

    return render


def _clock_macro(clock: datetime) -> str:
    """Jinja text that redefines `strftime_now`.

    Templates get plain data only, never a function, so the macro replaces directives by values.
    """
    names = [f"%{letter}" for letter in _DIRECTIVES] + [f"%-{letter}" for letter in _UNPADDED]
    pairs = [["%%", "\0"], *([name, clock.strftime(name)] for name in names), ["\0", "%"]]
    return (
        "{%- macro strftime_now(format) -%}{%- set now = namespace(text=format) -%}"
        f"{{%- for name, value in {json.dumps(pairs)} -%}}"
        "{%- set now.text = now.text.replace(name, value) -%}{%- endfor -%}"
        # The newline is eaten as any newline after a block is; the template begins its own line.
        "{{- now.text -}}{%- endmacro %}\n"
    )


def render_chat(chat: Chat, render: Render) -> Rendering:
    """Render a conversation and find the stretches of its roles.

    Raises:
        BadRow: the template fails on it or rewrites earlier turns.
    """
    text = render(chat.messages, False)
    stretches: list[Stretch] = []
    prompt_end = None
    open_role = Role.TEMPLATE  # of a message before this one whose end is not known
    for index, message in enumerate(chat.messages):
        role, start = ROLES[message.role], stretches[-1].end if stretches else 0
        if role is Role.ASSISTANT:
            turn = _turn(chat.messages, index, text, start, render)
            before = ROLES[chat.messages[index - 1].role] if index else Role.TEMPLATE
            stretches += _assistant_stretches(turn, before, open_role)
            if index == chat.prompt_messages:
                prompt_end = turn[0]
            open_role = Role.TEMPLATE
            continue
        end = _message_end(chat.messages, index, text, render)
        if end is None or end < start:
            open_role = role
            continue
        stretches.append(Stretch(end=end, role=role, merged=role, strict=False))
        open_role = Role.TEMPLATE
    return Rendering(text=text, stretches=tuple(stretches), prompt_end=prompt_end)


def token_roles(
    rendering: Rendering,
    ids: Sequence[int],
    prefixes: Mapping[str, Sequence[int]],
    special: Collection[int],
) -> tuple[UInt8, int | None]:
    """Carry the stretches of a text over to its tokens.

    Args:
        rendering: the text with its stretches.
        ids: tokens of the whole text, L of them.
        prefixes: tokens of each of `Rendering.prefixes`.
        special: ids that stand for no text.

    Returns:
        Roles uint8 [L], and the tokens before the completion or None.

    Raises:
        BadRow: tokens merge across a border that matters, or an answer has no text.
    """
    roles = np.zeros(len(ids), dtype=np.uint8)
    start, merged, prompt_length = 0, False, None
    for stretch in rendering.stretches:
        stop = _token_border(rendering.text[: stretch.end], rendering.text, ids, prefixes)
        if stop is None and stretch.strict:
            raise BadRow(
                "tokens merge across the border",
                f"a token spans the border after {rendering.text[: stretch.end][-40:]!r}",
            )
        if stop is None:
            merged = True
            continue
        if stretch.role is Role.ASSISTANT and all(item in special for item in ids[start:stop]):
            raise BadRow("empty assistant span", "the template leaves nothing of an answer")
        roles[start:stop] = stretch.merged if merged else stretch.role
        if stretch.end == rendering.prompt_end and prompt_length is None:
            prompt_length = stop
        start, merged = stop, False
    return roles, prompt_length


def _turn(
    messages: tuple[Message, ...], index: int, text: str, start: int, render: Render
) -> tuple[int, int, int]:
    """Ends of the header, of the answer with its end-of-turn token, and of the whole turn."""
    header = render(messages[:index], True)
    last = index + 1 == len(messages)
    upto = text if last else render(messages[: index + 1], False)
    if len(header) < start or not (text.startswith(upto) and upto.startswith(header)):
        raise BadRow(
            "template rewrites earlier turns",
            f"the text up to message {index} is not how the whole conversation begins; use a "
            "template that keeps earlier turns (--chat-template-path), or give the conversation as "
            "prompt and completion, with one answer a row",
        )
    turn, content = upto[len(header) :], messages[index].content
    at = turn.find(content)
    # Whitespace of the content itself is kept; whitespace that the template adds is not.
    kept = at + len(content) if at >= 0 else 0
    stop = len(header) + kept + len(turn[kept:].rstrip())
    return len(header), stop, len(upto)


def _assistant_stretches(
    turn: tuple[int, int, int], before: Role, open_role: Role
) -> tuple[Stretch, Stretch, Stretch]:
    header, stop, end = turn
    merged = Role.TEMPLATE if before is Role.ASSISTANT else before
    answer, nobody = Role.ASSISTANT, Role.TEMPLATE
    return (
        Stretch(end=header, role=open_role, merged=merged, strict=True),
        Stretch(end=stop, role=answer, merged=answer, strict=True),
        Stretch(end=end, role=nobody, merged=nobody, strict=False),
    )


def _message_end(
    messages: tuple[Message, ...], index: int, text: str, render: Render
) -> int | None:
    """Where a message ends, or None where the template cannot render so far and no further."""
    if index + 1 == len(messages):
        return len(text)
    try:
        upto = render(messages[: index + 1], False)
    except BadRow:
        return None
    return len(upto) if text.startswith(upto) else None


def _token_border(
    prefix: str, text: str, ids: Sequence[int], prefixes: Mapping[str, Sequence[int]]
) -> int | None:
    if len(prefix) == len(text):
        return len(ids)
    known = prefixes[prefix]
    return len(known) if ids[: len(known)] == known else None
