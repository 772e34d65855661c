"""OpenAI and vLLM: JSONL of responses with log-probabilities, one response a line.

A line is the response itself, a line of a batch's output (``response.body``), or an object with
``response`` and, for the prompt, ``messages`` (also ``request.messages`` or ``body.messages``).
With them may stand ``tools`` and ``chat_template_kwargs``; where the response counts the prompt's
tokens, another length is refused. Each choice is a document: of ``prompt_logprobs`` the prompt, of
``logprobs`` the answer; rows of a prompt that was not scored are empty. Log-probabilities are those
of temperature 1 over the whole vocabulary, unless the server was asked for processed ones; hosted
APIs give at most 20 a place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, ClassVar

from cachekd.config import ExportConfig, ImportConfig
from cachekd.data.models import resolve_model
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import Broken, Found, Reading, Writing
from cachekd.exchange._choices import document_of
from cachekd.exchange._json_lines import lines, object_of, told
from cachekd.exchange._sources import File, files_of
from cachekd.exchange._vocabulary import Vocabulary
from cachekd.store.reader import Cache

_BLOCK = 1 << 20


class OpenAI:
    """See the module's text."""

    lacks: ClassVar[tuple[str, ...]] = (
        "tail mass",
        "entropy",
        "log-normalisers",
        "teacher and weights",
    )

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """See `cachekd.exchange.Format.read`."""
        files = files_of(config.source, [".jsonl"])
        _refuse_other(files[0])
        vocabulary = Vocabulary(resolve_model(config.tokenizer, weights=False))
        return Reading(
            documents=_documents(files, vocabulary),
            values="logprobs",
            next_known=None,
            total=sum(map(_lines, files)),
        )

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """Not written: a response is what a server says, with texts that a cache does not hold."""
        raise ConfigError(
            "format: openai can be imported only. Export axolotl, distillkit or arrow"
        )


def _refuse_other(file: File) -> None:
    """Refuse a file whose first object is no response.

    Raises:
        DataError: says what was found.
    """
    if not file.name.endswith(".jsonl"):
        raise DataError(f"{file.name}: expected JSONL, one response a line")
    with file.open() as stream:
        first = next(_objects(stream, file.name), None)
    if first is None:
        raise DataError(f"{file.name}: expected rows; the source is empty, or no line is an object")
    if not isinstance(_body(first).get("choices"), list):
        like = "target_token_ids" in first or "target_logprobs" in first
        hint = " Did you mean --format axolotl?" if like else ""
        raise DataError(
            f"{file.name}: expected responses with choices; the first object has "
            f"{', '.join(map(str, first))[:200]}.{hint}"
        )


def _objects(stream: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    """Lines that are objects; what others are is told when they are read."""
    for number, line in lines(stream, name):
        with suppress(DataError):
            yield object_of(line, name, number)


def _lines(file: File) -> int:
    count = 0
    with file.open() as stream:
        while block := stream.read(_BLOCK):
            count += block.count(b"\n")
    return count


def _body(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The response of a line."""
    response = line.get("response")
    if isinstance(response, Mapping):
        body = response.get("body")
        return body if isinstance(body, Mapping) else response
    return line


def _request(line: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The request of a line: what holds the messages, or the prompt, that it was asked with."""
    for holder in (line, line.get("request"), line.get("body")):
        for name in ("messages", "prompt"):
            if isinstance(holder, Mapping) and isinstance(holder.get(name), list | str):
                return holder
    return None


def _documents(files: Sequence[File], vocabulary: Vocabulary) -> Iterator[Found]:
    for file in files:
        with file.open() as stream:
            for number, line in lines(stream, file.name):
                yield from _choices(line, file.name, number, vocabulary)


def _choices(line: bytes, source: str, row: int, vocabulary: Vocabulary) -> Iterator[Found]:
    """Documents of one line."""
    try:
        parsed = object_of(line, source, row)
    except DataError as error:
        yield Broken(source=source, row=row, reason=told(str(error).removeprefix(f"{source} ")))
        return
    body = _body(parsed)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        yield Broken(source=source, row=row, reason="a response without choices")
        return
    for choice in choices:
        try:
            if not isinstance(choice, Mapping):
                raise ValueError("a choice that is no object")
            yield document_of(body, choice, _request(parsed), vocabulary, source, row)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            yield Broken(source=source, row=row, reason=told(str(error)))


PLUGIN = OpenAI
