"""What a vLLM server is asked and answers, as JSON.

``POST /v1/completions`` with ``prompt_logprobs`` scores prompts; ``POST /inference/v1/generate``
with ``prompt_logprob_token_ids`` scores given ids, a list for each row, and answers with a base64
npy matrix whose row i is row ``prompt_logprob_start`` + i of the document.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cachekd.errors import DataError, TeacherError
from cachekd.teachers._http import Connection, Reply
from cachekd.types import Float32, Int32

ADVICE = "Check the URL; a vLLM server is started by: vllm serve MODEL --max-logprobs K"


def who(connection: Connection, *, starting: bool) -> tuple[Mapping[str, Any], str]:
    """The first model that is served, and the version of the engine."""

    def first(reply: Reply) -> Mapping[str, Any]:
        check_status(connection, reply)
        try:
            found = reply.value()["data"]
            model: Mapping[str, Any] = next(m for m in found if not m.get("parent"))
            return {"id": str(model["id"]), **model}
        except (KeyError, TypeError, AttributeError, StopIteration, DataError) as error:
            raise TeacherError(
                f"{connection.url} is no vLLM server: {error!r}. {ADVICE}"
            ) from error

    def version(reply: Reply) -> str:
        check_status(connection, reply)
        try:
            return str(reply.value()["version"])
        except (KeyError, TypeError, DataError) as error:
            raise TeacherError(
                f"{connection.url} is no vLLM server: {error!r}. {ADVICE}"
            ) from error

    model = connection.ask("/v1/models", first, starting=starting)
    return model, connection.ask("/version", version, starting=starting)


def completion(model: str, documents: Sequence[Int32], count: int) -> bytes:
    """The body of a request for the log-probabilities of prompts."""
    body = {
        "model": model,
        "prompt": [ids_L.tolist() for ids_L in documents],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": count,
        "add_special_tokens": False,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def prompt_logprobs(value: Any, documents: Sequence[Int32]) -> list[list[Any]]:
    """``prompt_logprobs`` of the choices of an answer, in the order of the prompts."""
    try:
        choices = sorted(value["choices"], key=lambda choice: choice["index"])
        found = [choice["prompt_logprobs"] for choice in choices]
        lengths = [len(places) for places in found]
    except (KeyError, TypeError) as error:
        raise DataError(f"the answer has no prompt_logprobs: {error!r}") from error
    if lengths != [len(ids_L) for ids_L in documents]:
        raise DataError(f"expected prompt_logprobs of each prompt's tokens; found {lengths[:20]}")
    return found


def given_request(model: str, ids_L: Int32, first: int, given_RJ: Int32) -> bytes:
    """The body of a request for the log-probabilities of given ids, from a row on."""
    body = {
        "model": model,
        "token_ids": ids_L.tolist(),
        "stream": False,
        "sampling_params": {
            "max_tokens": 1,
            "prompt_logprob_token_ids": given_RJ.tolist(),
            "prompt_logprob_start": first,
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def matrix(url: str, reply: Reply, shape: tuple[int, ...]) -> Float32:
    """The log-probabilities of given ids, from base64 of an npy file."""
    value = reply.value()
    text = value.get("prompt_token_id_logprobs") if isinstance(value, dict) else None
    if text is None:
        raise TeacherError(no_given(url, reply))
    try:
        array = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, TypeError, ValueError, EOFError) as error:
        raise DataError(f"prompt_token_id_logprobs cannot be read: {error!r}") from error
    if array.shape != shape or not (array <= 1e-3).all():
        raise DataError(f"expected log-probabilities of shape {shape}; found {array.shape}")
    scores: Float32 = array.astype(np.float32)
    return scores


def check_status(connection: Connection, reply: Reply) -> None:
    if reply.status != 200:
        raise TeacherError(refusal(connection.url, reply, 0))


def refusal(url: str, reply: Reply, count: int) -> str:
    text = reply.message()
    if reply.status == 401:
        return f"{url} asks for another key: set --teacher-token or CACHEKD_TEACHER_TOKEN"
    if reply.status == 400 and "logprobs" in text:
        return (
            f"{url} does not give {count} entries a position: {text}. Start vLLM with "
            f"--max-logprobs {count}, or keep fewer with --logits-top-k"
        )
    return f"{url} refused with {reply.status}: {text}. {ADVICE}"


def no_given(url: str, reply: Reply) -> str:
    found = reply.message() if reply.status != 200 else "the answer has none"
    return (
        f"{url} does not score given ids ({reply.status}: {found}): that needs a vLLM whose "
        "/inference/v1/generate takes prompt_logprob_token_ids for each row, its V2 model runner, "
        "and --max-logprobs of at least as many ids. Set --support 0, or serve the teacher with "
        "cachekd serve-teacher"
    )
