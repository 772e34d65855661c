"""Instructions as text or as a conversation.

In: an `Instruction`. Out: its prompt in the Alpaca wording (Taori et al., 2023) or as plain
concatenation, or a `Chat`. Earlier turns come first, in the form of the current one.
"""

from __future__ import annotations

from cachekd.data.nouns import Chat, Instruction, Message, PromptCompletion

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


def _has_input(row: Instruction) -> bool:
    return bool(row.input.strip())
