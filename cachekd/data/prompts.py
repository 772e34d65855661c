"""Instructions as text or as a conversation, and what of a row is a prompt.

In: an `Instruction`. Out: its prompt in the Alpaca wording (Taori et al., 2023) or as plain
concatenation, or a `Chat`. Earlier turns come first, in the form of the current one. Where the
teacher writes the responses, a row must say where its own begins: `question`.
"""

from __future__ import annotations

from dataclasses import replace

from cachekd.data.nouns import BadRow, Chat, Instruction, Message, Noun, PromptCompletion

_TASK = "Below is an instruction that describes a task. "
_TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
)
_REQUEST = "Write a response that appropriately completes the request.\n\n"


def alpaca(row: Instruction) -> PromptCompletion:
    """The Stanford Alpaca prompt, with or without input, and the output."""
    prompt = (_TASK_WITH_INPUT if _has_input(row) else _TASK) + _REQUEST
    for user, assistant in row.history:
        prompt += f"### Instruction:\n{user}\n\n### Response:\n{assistant}\n\n"
    prompt += f"### Instruction:\n{row.instruction}\n\n"
    if _has_input(row):
        prompt += f"### Input:\n{row.input}\n\n"
    return PromptCompletion(prompt=prompt + "### Response:\n", completion=row.output)


def plain(row: Instruction) -> PromptCompletion:
    """Instruction, input and output, a newline between them."""
    turns = [text for turn in row.history for text in turn]
    turns += [row.instruction, row.input] if _has_input(row) else [row.instruction]
    return PromptCompletion(prompt="".join(f"{text}\n" for text in turns), completion=row.output)


def conversation(row: Instruction) -> Chat:
    """History, then the instruction with its input as the user, then the output."""
    messages = []
    for user, assistant in row.history:
        messages.append(Message(role="user", content=user))
        messages.append(Message(role="assistant", content=assistant))
    question = f"{row.instruction}\n\n{row.input}" if _has_input(row) else row.instruction
    messages.append(Message(role="user", content=question))
    before = len(messages)
    messages.append(Message(role="assistant", content=row.output))
    return Chat(messages=tuple(messages), prompt_messages=before)


def question(noun: Noun) -> Noun:
    """The same, with a border before the response: of a conversation, before its last turn.

    Raises:
        BadRow: there is no prompt, or nothing that it asks for.
    """
    if isinstance(noun, PromptCompletion | Instruction):
        return noun
    if not isinstance(noun, Chat):
        raise BadRow("no prompt", "expected a prompt and its response, found text alone")
    if noun.prompt_messages is not None:
        return noun
    last = noun.messages[-1].role
    if last != "assistant":
        raise BadRow("no prompt", f"expected an assistant turn at the end, found one of {last!r}")
    return replace(noun, prompt_messages=len(noun.messages) - 1)


def _has_input(row: Instruction) -> bool:
    return bool(row.input.strip())
