"""The endpoints of a served teacher, and what they refuse.

    GET  /health        {"ready", "stopping", "queued"}; needs no token
    GET  /v1/identity   who the teacher is, and the limits of a request
    POST /v1/score      a request of `cachekd.teachers._wire`, answered in kind

Errors are JSON, {"error": text}: 400 no such request, or ids or lengths beyond the teacher; 401 no
or another token; 408 a body that does not arrive; 409 another teacher is expected; 413 a body or
an answer that is too large; 500 the teacher failed; 503 with Retry-After, too many requests or the
server is about to end.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from concurrent.futures import Future
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cachekd.config import ServeConfig
from cachekd.errors import DataError, TeacherError
from cachekd.serving.batches import Batches
from cachekd.serving.hosted import Hosted, described
from cachekd.teachers._wire import (
    CONTENT_TYPE,
    ScoreRequest,
    frame_size,
    pack_answer,
    sizes,
    unpack_request,
)
from cachekd.types import TopKLogits

_BODY_SECONDS = 60.0
_LOOK_SECONDS = 1.0
"""How often it is looked at whether the client still waits."""


class Service:
    """What the endpoints share: the teacher, its queue, and how many requests are under way."""

    def __init__(self, hosted: Hosted, batches: Batches, config: ServeConfig) -> None:
        self._hosted = hosted
        self._batches = batches
        self._config = config
        self._identity = described(hosted, config)
        self.held = 0
        self.stopping = False
        self.answered = 0

    def app(self) -> Starlette:
        """The endpoints as an ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                Route("/v1/identity", self.identity, methods=["GET"]),
                Route("/v1/score", self.score, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refused},
        )

    async def health(self, request: Request) -> Response:
        """Whether it answers, and how many wait."""
        queued = self._batches.waiting
        return _json({"ready": not self.stopping, "stopping": self.stopping, "queued": queued})

    async def identity(self, request: Request) -> Response:
        """Who the teacher is."""
        self._check_token(request)
        return _json(self._identity)

    async def score(self, request: Request) -> Response:
        """Score documents."""
        self._check_token(request)
        if self.stopping or self.held >= self._config.max_queue:
            reason = "the server is stopping" if self.stopping else "too many requests wait"
            raise HTTPException(503, reason, {"retry-after": "1"})
        self.held += 1
        try:
            asked = self._checked(await _body(request, self._config.max_body_bytes))
            targets = await _result(request, self._batches.submit(asked))
            data = await asyncio.to_thread(pack_answer, asked, targets)
        except TeacherError as error:
            raise HTTPException(500, str(error)) from error
        finally:
            self.held -= 1
        self.answered += 1
        return Response(data, media_type=CONTENT_TYPE)

    def _check_token(self, request: Request) -> None:
        """Refuse who does not know the token; the comparison takes the same time for all."""
        if self._config.token is None:
            return
        found = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(found, f"Bearer {self._config.token}".encode()):
            raise HTTPException(
                401, "expected the token of this server", {"www-authenticate": "Bearer"}
            )

    def _checked(self, data: bytes) -> ScoreRequest:
        """The request in a body, if this teacher can score it."""
        try:
            asked = unpack_request(data)
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        if asked.source_id != self._hosted.source_id:
            raise HTTPException(
                409,
                f"expected the teacher {asked.source_id[:64]}; this is {self._hosted.source_id}",
            )
        vocab, context = self._hosted.vocab_size, self._hosted.context_length
        if asked.selection.vocab_size != vocab:
            raise HTTPException(
                400, f"expected a vocabulary of {vocab}; found {asked.selection.vocab_size}"
            )
        longest = max(map(len, asked.documents))
        if longest > context:
            raise HTTPException(
                400, f"expected at most {context} tokens in a document; found {longest}"
            )
        for ids in [*asked.documents, *(ids for ids in asked.given if ids is not None)]:
            if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab):
                raise HTTPException(
                    400, f"expected ids of 0 to {vocab - 1}; found {ids.min()} to {ids.max()}"
                )
        self._check_answer(asked)
        return asked

    def _check_answer(self, asked: ScoreRequest) -> None:
        most = frame_size(asked.selection) + sum(answer for _, answer in sizes(asked))
        if most > self._config.max_answer_bytes:
            raise HTTPException(
                413,
                f"the answer may need {most} bytes; the server gives at most "
                f"{self._config.max_answer_bytes} (--max-answer-bytes). Ask for fewer documents or "
                "entries",
            )


async def _body(request: Request, most: int) -> bytes:
    """The body, counted while it arrives: a header may say anything, or nothing."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {_BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the client went away") from error
    return b"".join(chunks)


async def _result(request: Request, future: Future[list[TopKLogits]]) -> list[TopKLogits]:
    """What the teacher says, unless the client has gone: then nothing more is done for it."""
    waiting = asyncio.wrap_future(future)
    while not waiting.done():
        await asyncio.wait([waiting], timeout=_LOOK_SECONDS)
        if not waiting.done() and await request.is_disconnected():
            waiting.cancel()
            raise HTTPException(400, "the client went away")
    return waiting.result()


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"expected at most {most} bytes (--max-body-bytes); found more")


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value), status_code=status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _json({"error": error.detail}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer
