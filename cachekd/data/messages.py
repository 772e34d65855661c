"""Conversations in the forms that data sets use, read as `Message` turns.

In: the value of a ``messages``, ``conversations`` or ``history`` column. Out: turns, all of them
text, with a role that cachekd knows. Raises `BadRow` for what it cannot take over whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd.data.nouns import BadRow, Message
from cachekd.types import Role

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Whose turn it is, by the names that data sets use."""
# A turn that has one of these says more than its text: to drop it would change what is learned.
_BEYOND_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def read_messages(value: Any, column: str) -> tuple[Message, ...]:
    """Turns of the form ``{"role": ..., "content": ...}``.

    Raises:
        BadRow: not a list of such turns, an unknown role, or content that is not text.
    """
    names = {name: name for name in ROLES}
    return tuple(
        _message(item, column, role_key="role", text_key="content", names=names)
        for item in _items(value, column)
    )


def read_sharegpt(value: Any, column: str) -> tuple[Message, ...]:
    """Turns of the form ``{"from": ..., "value": ...}``.

    Raises:
        BadRow: as `read_messages`.
    """
    return tuple(
        _message(item, column, role_key="from", text_key="value", names=SHAREGPT)
        for item in _items(value, column)
    )


def read_history(value: Any, column: str) -> tuple[tuple[str, str], ...]:
    """Earlier (user, assistant) turns: a list of pairs, or one flat list u, a, u, a.

    Raises:
        BadRow: neither of the two, or an empty assistant turn.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{column}: expected a list, found {type(value).__name__}")
    if all(isinstance(item, str) for item in value):
        if len(value) % 2:
            raise BadRow("wrong type", f"{column}: expected pairs of turns, found {len(value)}")
        value = [value[i : i + 2] for i in range(0, len(value), 2)]
    return tuple(_pair(item, column) for item in value)


def _pair(value: Any, column: str) -> tuple[str, str]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(isinstance(text, str) for text in value):
        raise BadRow(
            "wrong type", f"{column}: expected [user, assistant] text, found {value!r:.80}"
        )
    user, assistant = value
    if not assistant.strip():
        raise BadRow("empty text", f"{column}: an assistant turn is empty")
    return user, assistant


def _items(value: Any, column: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRow(
            "wrong type", f"{column}: expected a list of messages, found {type(value).__name__}"
        )
    return value


def _message(
    item: Any, column: str, *, role_key: str, text_key: str, names: Mapping[str, str]
) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(
            "wrong type", f"{column}: expected message objects, found {type(item).__name__}"
        )
    role = item.get(role_key)
    if not isinstance(role, str) or role not in names:
        raise BadRow(
            "unknown role",
            f"{column}: expected {role_key!r} to be one of {', '.join(names)}; found {role!r}",
        )
    for key in _BEYOND_TEXT:
        if item.get(key):
            raise BadRow("not text", f"{column}: a message has {key!r}, which is not used")
    text = _text(item.get(text_key), f"{column}: {text_key!r}")
    if names[role] == "assistant" and not text.strip():
        raise BadRow("empty text", f"{column}: an assistant message is empty")
    return Message(role=names[role], content=text)


def _text(content: Any, what: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise BadRow("missing value", f"{what} of a message is missing")
    if not isinstance(content, list):
        raise BadRow("wrong type", f"{what}: expected text, found {type(content).__name__}")
    return "".join(_part(part, what) for part in content)


def _part(part: Any, what: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise BadRow("not text", f"{what}: expected parts of type 'text', found {kind!r}")
    if not isinstance(part.get("text"), str):
        raise BadRow("wrong type", f"{what}: a text part has no text")
    return str(part["text"])
