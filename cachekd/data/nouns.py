"""What a row of data says, before it has tokens.

In: nothing. Out: the nouns that `cachekd.data.columns` reads and `cachekd.data.drafts` turns into
text, and `BadRow`, the error of a single row, which is counted when bad rows are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.errors import DataError
from cachekd.types import Int64


class BadRow(DataError):
    """One row cannot be used.

    Attributes:
        reason: a short, stable key that rows are counted by.
        detail: what was expected and what was found in this row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; ``role`` is the name that a chat template gets."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation.

    Attributes:
        messages: the turns, at least one.
        prompt_messages: number of turns before the completion, or None without such a border.
    """

    messages: tuple[Message, ...]
    prompt_messages: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCompletion:
    """Two strings that are joined as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """An instruction with its answer; ``history`` holds earlier (user, assistant) turns."""

    instruction: str
    input: str
    history: tuple[tuple[str, str], ...]
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """Text without a prompt."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Token ids [L], and labels [L] that are the ids where trained and -100 elsewhere, or None."""

    input_ids: Int64
    labels: Int64 | None


Noun = Chat | PromptCompletion | Instruction | PlainText | Tokens
