"""The teacher of a ``cachekd serve-teacher``: reached over HTTP, scores as if it were here.

Comes in: a URL. Goes out: the same targets as the teacher gives in its own process. Each request
names the source that it expects, so a server that comes back with another teacher is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import differences, json_id
from cachekd.errors import ConfigError, DataError, MismatchError, TeacherError
from cachekd.teachers import RemoteConfig, Selection
from cachekd.teachers._http import Connection, Reply
from cachekd.teachers._wire import (
    CONTENT_TYPE,
    ScoreRequest,
    frame_size,
    pack_request,
    sizes,
    unpack_answer,
)
from cachekd.types import Int32, TopKLogits

_ADVICE = (
    "Check the URL; a teacher is served by: cachekd serve-teacher --teacher M (see --host, --port)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """What a server says of itself."""

    source: Mapping[str, Any]
    source_id: str
    context_length: int
    numerics: Mapping[str, Any]
    max_body_bytes: int
    max_answer_bytes: int


class ServedTeacher:
    """A teacher in another process."""

    def __init__(self, connection: Connection, server: _Server) -> None:
        self._connection = connection
        self._server = server

    @staticmethod
    def connect(config: RemoteConfig) -> ServedTeacher:
        """See `cachekd.teachers.RemoteBackend.connect`."""
        connection = Connection(config, advice=_ADVICE)
        server = connection.ask("/v1/identity", _read_server(connection), starting=True)
        expected = {"tokenizer": config.tokenizer, "vocab_size": config.vocab_size}
        found = {name: server.source.get(name) for name in expected}
        lines = differences(expected, found)
        if lines:
            raise MismatchError(
                f"the teacher at {connection.url} does not have the student's tokenizer. They "
                "differ in (student / teacher):\n  " + "\n  ".join(lines)
            )
        return ServedTeacher(connection, server)

    @property
    def source(self) -> Mapping[str, Any]:
        """See `cachekd.teachers.RemoteTeacher.source`."""
        return self._server.source

    @property
    def context_length(self) -> int:
        """See `cachekd.teachers.RemoteTeacher.context_length`."""
        return self._server.context_length

    @property
    def numerics(self) -> Mapping[str, Any]:
        """What the server says that its numbers depend on."""
        return self._server.numerics

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`; the server chooses the shapes of its batches."""
        if selection.samples or selection.tau:
            raise ConfigError("a served teacher gives exact heads; sampled entries are not served")
        request = ScoreRequest(
            source_id=self._server.source_id,
            selection=selection,
            documents=documents,
            wanted=[
                np.ones(len(ids_L) - 1, dtype=bool) if rows is None else rows
                for ids_L, rows in zip(documents, wanted, strict=True)
            ],
            given=given if given is not None else [None] * len(documents),
        )
        return [target for part, most in self._parts(request) for target in self._ask(part, most)]

    def _ask(self, request: ScoreRequest, most: int) -> list[TopKLogits]:
        def read(reply: Reply) -> list[TopKLogits]:
            if reply.status == 409:
                raise MismatchError(self._other_teacher(reply))
            if reply.status != 200:
                raise TeacherError(_refusal(self._connection.url, reply))
            return unpack_answer(reply.data, request)

        return self._connection.ask(
            "/v1/score", read, body=pack_request(request), content_type=CONTENT_TYPE, limit=most
        )

    def _parts(self, request: ScoreRequest) -> Iterator[tuple[ScoreRequest, int]]:
        """The request in parts within the server's limits, with the most bytes of each answer.

        Raises:
            TeacherError: one document is beyond the limits.
        """
        frame = frame_size(request.selection)
        most = (self._server.max_body_bytes - frame, self._server.max_answer_bytes - frame)
        first, asked, answered = 0, 0, 0
        for place, (body, answer) in enumerate(sizes(request)):
            if body > most[0] or answer > most[1]:
                raise TeacherError(
                    f"a document of {len(request.documents[place])} tokens needs up to {body} "
                    f"bytes to ask and {answer} to answer; the server at {self._connection.url} "
                    f"takes {most[0]} and gives {most[1]}. Keep fewer entries (--logits-top-k), "
                    "or serve with larger --max-body-bytes and --max-answer-bytes"
                )
            if place > first and (asked + body > most[0] or answered + answer > most[1]):
                yield _part(request, first, place), frame + answered
                first, asked, answered = place, 0, 0
            asked, answered = asked + body, answered + answer
        if request.documents:
            yield _part(request, first, len(request.documents)), frame + answered

    def _other_teacher(self, reply: Reply) -> str:
        """Text for a server whose teacher is another than at the start."""
        now = self._connection.ask("/v1/identity", _read_server(self._connection))
        lines = differences(self._server.source, now.source)
        return (
            f"the server at {self._connection.url} has another teacher than when this run "
            f"connected: {reply.message()}. They differ in (before / now):\n  " + "\n  ".join(lines)
        )


def _part(request: ScoreRequest, first: int, end: int) -> ScoreRequest:
    return replace(
        request,
        documents=request.documents[first:end],
        wanted=request.wanted[first:end],
        given=request.given[first:end],
    )


def _read_server(connection: Connection) -> Any:
    """What makes a `_Server` of the answer to ``/v1/identity``."""

    def read(reply: Reply) -> _Server:
        if reply.status != 200:
            raise TeacherError(_refusal(connection.url, reply))
        try:
            value = reply.value()
            server = _Server(
                source=dict(value["source"]),
                source_id=str(value["source_id"]),
                context_length=int(value["context_length"]),
                numerics=dict(value["numerics"]),
                max_body_bytes=int(value["limits"]["max_body_bytes"]),
                max_answer_bytes=int(value["limits"]["max_answer_bytes"]),
            )
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise TeacherError(
                f"{connection.url} is no cachekd serve-teacher: {error!r}. {_ADVICE}; a vLLM "
                "server is reached with --teacher-backend vllm"
            ) from error
        if json_id(server.source) != server.source_id:
            raise DataError("the source of the teacher does not have the id that came with it")
        return server

    return read


def _refusal(url: str, reply: Reply) -> str:
    if reply.status == 401:
        return (
            f"{url} asks for another token: set --teacher-token or CACHEKD_TEACHER_TOKEN to that "
            "of the server"
        )
    if reply.status == 404:
        return f"{url} is no cachekd serve-teacher. {_ADVICE}"
    return f"{url} refused with {reply.status}: {reply.message()}"


PLUGIN = ServedTeacher
