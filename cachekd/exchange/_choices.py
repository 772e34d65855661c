"""One response of an OpenAI or vLLM server as a document.

Comes in: a response's body, the request where it stands beside it, and the vocabulary.
Goes out: a `Document`, or a `ValueError` that says what is missing. Places are scored tokens: place
i holds log-probabilities over token i, so that it is row i - 1.

    prompt_logprobs             [tokens]  null, then {"<id>": {"logprob": ...}} (vLLM)
    logprobs.content            [tokens]  {"token", "bytes", "logprob", "top_logprobs"} (chat)
    logprobs.top_logprobs       [tokens]  {"<token>": logprob} (completions), with tokens and
                                          token_logprobs; the prompt's too with echo
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.exchange import Document
from cachekd.exchange._rows import NOTHING
from cachekd.exchange._vocabulary import Vocabulary
from cachekd.types import Role

Place = dict[int, float] | None
"""Log-probabilities over one token, by id; None where nothing is known."""


@dataclass(slots=True)
class _Scored:
    """Tokens with the places that score them, and the log-probability of each that was told."""

    ids: list[int]
    places: list[Place]


def document_of(
    body: Mapping[str, Any],
    choice: Mapping[str, Any],
    request: Mapping[str, Any] | None,
    vocabulary: Vocabulary,
    source: str,
    row: int,
) -> Document:
    """The document of one choice of a response.

    Raises:
        ValueError: it holds no log-probabilities, or not the token ids that they belong to.
    """
    answer = _answer(choice, vocabulary)
    prompt = _prompt(body, choice, request, vocabulary, answer)
    if answer is None:
        answer = _Scored([], [])
    ids, places = prompt.ids + answer.ids, prompt.places + answer.places
    if not any(places[1:]):
        raise ValueError("no log-probabilities: neither prompt_logprobs nor logprobs")
    spoken = bool(prompt.ids) and bool(answer.ids)
    roles = np.full(len(ids), Role.TEXT, np.uint8)
    if spoken:
        roles[: len(prompt.ids)], roles[len(prompt.ids) :] = Role.USER, Role.ASSISTANT
    counts = [len(place or ()) for place in places[1:]]
    entries = [item for place in places[1:] for item in (place or {}).items()]
    told = [
        (place or {}).get(token, math.nan) for token, place in zip(ids[1:], places[1:], strict=True)
    ]
    return Document(
        source=source,
        row=row,
        input_ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        ids=np.array([token for token, _ in entries], np.int64),
        logprobs=np.array([value for _, value in entries], np.float32),
        roles=roles,
        prompt_length=len(prompt.ids) if spoken else None,
        next_logprob=np.array([v if v > NOTHING else math.nan for v in told], np.float32),
    )


def _prompt(
    body: Mapping[str, Any],
    choice: Mapping[str, Any],
    request: Mapping[str, Any] | None,
    vocabulary: Vocabulary,
    answer: _Scored | None,
) -> _Scored:
    """The prompt's tokens, scored where the server did; none where the answer echoes it."""
    holders = [holder for holder in (choice, body) if holder.get("prompt_logprobs") is not None]
    given = next(
        (h["prompt_token_ids"] for h in (choice, body) if h.get("prompt_token_ids") is not None),
        None,
    )
    if holders:
        scored = holders[0]["prompt_logprobs"]
        if given is None:
            raise ValueError(
                "prompt_logprobs without prompt_token_ids: ask vLLM with return_token_ids"
            )
        ids = _whole(given)
        if not isinstance(scored, list) or len(scored) != len(ids):
            raise ValueError(f"{len(ids)} prompt_token_ids beside {_size(scored)} prompt_logprobs")
        return _Scored(ids, [_vllm_place(place) for place in scored])
    if answer is not None and answer.places and answer.places[0] is None:
        return _Scored([], [])  # echo: its first token has no place
    if given is not None:
        ids = _whole(given)
    elif request is not None:
        ids = vocabulary.prompt(request)
        _refuse_other_length(body, len(ids))
    else:
        raise ValueError(
            "no prompt: expected prompt_token_ids (vLLM: return_token_ids), or the messages of the "
            "request beside the response"
        )
    return _Scored(ids, [None] * len(ids))


def _refuse_other_length(body: Mapping[str, Any], length: int) -> None:
    """Refuse a prompt that was rendered again to other tokens than the server counted."""
    usage = body.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if counted is not None and counted != length:
        raise ValueError(
            f"the messages are {length} tokens in this tokenizer's template, and the server "
            f"counted {counted!r:.20}: it used another template or setting; ask vLLM with "
            "return_token_ids"
        )


def _answer(choice: Mapping[str, Any], vocabulary: Vocabulary) -> _Scored | None:
    """The tokens that were written, with their places."""
    found = choice.get("logprobs")
    if not isinstance(found, Mapping):
        return None
    if isinstance(found.get("content"), list):
        scored = [_chat_place(item, vocabulary) for item in found["content"]]
    else:
        scored = _completion(found, vocabulary)
    ids = [token for token, _ in scored]
    given = choice.get("token_ids")
    if given is not None and _whole(given)[: len(ids)] != ids:
        raise ValueError("token_ids of the choice are others than those of its logprobs")
    return _Scored(ids, [place for _, place in scored])


def _chat_place(item: Any, vocabulary: Vocabulary) -> tuple[int, Place]:
    """A token of a chat's answer, and its place."""
    if not isinstance(item, Mapping):
        raise ValueError(f"a place of logprobs.content that is no object: {item!r:.80}")
    own = vocabulary.id_of(item.get("token"), item.get("bytes"))
    entries = item.get("top_logprobs")
    if not entries:
        return own, {}
    place = {
        vocabulary.id_of(e.get("token"), e.get("bytes")): _number(e.get("logprob")) for e in entries
    }
    return own, {own: _number(item.get("logprob")), **place}


def _completion(found: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[int, Place]]:
    columns = [found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    lists = [column for column in columns if isinstance(column, list)]
    if len(lists) != len(columns) or len({*map(len, lists)}) != 1:
        raise ValueError(
            "logprobs: expected content, or tokens, token_logprobs and top_logprobs of one length; "
            f"found {', '.join(f'{k} of {_size(v)}' for k, v in found.items())}"
        )
    scored: list[tuple[int, Place]] = []
    for token, value, top in zip(*lists, strict=True):
        own = vocabulary.id_of(token)
        if value is None and not scored:
            scored.append((own, None))
            continue
        place = {vocabulary.id_of(name): _number(v) for name, v in (top or {}).items()}
        scored.append((own, {own: _number(value), **place} if place else {}))
    return scored


def _vllm_place(place: Any) -> Place:
    if place is None:
        return None
    if not isinstance(place, Mapping):
        raise ValueError(f"a place of prompt_logprobs that is no object: {place!r:.80}")
    return {int(token): _number(item["logprob"]) for token, item in place.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a log-probability; found {value!r:.80}")
    return float(value)


def _whole(value: Any) -> list[int]:
    if not isinstance(value, Sequence) or not all(type(item) is int for item in value):
        raise ValueError(f"expected token ids; found {value!r:.80}")
    return list(value)


def _size(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else type(value).__name__
