"""The teacher of vLLM: an engine in this process, or a server that is reached over HTTP.

In this process: see `cachekd.teachers._vllm_engine`. Of a server (``vllm serve``) comes in the URL
of its OpenAI-compatible completions, which are asked with prompts of ids. Goes out: targets with
what it can tell: exact heads, a tail that is 1 - sum, an entropy that is a lower bound (see
`cachekd.teachers._vllm_rows`), temperature 1 alone. Given ids are scored where the server has
``prompt_logprob_token_ids`` (``/inference/v1/generate``). Which weights it runs, and with which
tokenizer, it cannot prove: its source is what it is called, where that came from, and the version
of the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig, ScoringConfig
from cachekd.data.digests import differences
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.teachers import RemoteConfig, Selection, Teacher, TeacherFacts, _vllm_engine
from cachekd.teachers._http import Connection, Reply
from cachekd.teachers._vllm_api import (
    ADVICE,
    check_status,
    completion,
    given_request,
    matrix,
    no_given,
    prompt_logprobs,
    refusal,
    who,
)
from cachekd.teachers._vllm_rows import Row, given_entries, read_row, targets_of
from cachekd.types import Float32, Int32, TopKLogits

_ENTRY_BYTES = 96
_MOST_ENTRY_BYTES = 1024
_ANSWER_BYTES = 1 << 26
"""About what one answer should be; a single document may need more."""

_log = logging.getLogger(__name__)


class VLLMTeacher:
    """A model that a vLLM server runs; and how one is run in this process."""

    def __init__(
        self, connection: Connection, source: Mapping[str, Any], context_length: int
    ) -> None:
        self._connection = connection
        self._source = source
        self._context_length = context_length

    @staticmethod
    def identify(config: PrecomputeConfig | ScoringConfig) -> TeacherFacts:
        """See `cachekd.teachers.TeacherBackend.identify`."""
        return _vllm_engine.identify(config)

    @staticmethod
    def load(
        config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts, threads: int
    ) -> Teacher:
        """See `cachekd.teachers.TeacherBackend.load`; the engine minds its own threads."""
        return _vllm_engine.load(config, facts)

    @staticmethod
    def connect(config: RemoteConfig) -> VLLMTeacher:
        """See `cachekd.teachers.RemoteBackend.connect`; warns of what cannot be compared."""
        connection = Connection(config, advice=ADVICE, below="/v1")
        model, version = who(connection, starting=True)
        source = _source(model, version, config)
        longest = model.get("max_model_len")
        if not isinstance(longest, int) or longest < 3:
            raise TeacherError(f"{connection.url} does not say how long its prompts may be")
        _check_vocabulary(connection, source["model"], config.vocab_size)
        _log.warning(
            "%s: a vLLM server cannot prove the weights and the tokenizer of %r: they are taken to "
            "be the right ones. Scores are kept under its name, origin and engine version; if "
            "the model behind these changes, use another --score-cache",
            connection.url,
            source["model"],
        )
        return VLLMTeacher(connection, source, longest - 1)  # one token must be left to write

    @property
    def source(self) -> Mapping[str, Any]:
        """See `cachekd.teachers.RemoteTeacher.source`."""
        return self._source

    @property
    def context_length(self) -> int:
        """See `cachekd.teachers.RemoteTeacher.context_length`."""
        return self._context_length

    @property
    def numerics(self) -> Mapping[str, Any]:
        """The engine; it does not tell its device."""
        return {"engine": "vllm", "version": self._source["version"]}

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`; the server chooses the shapes of its batches."""
        _check_selection(selection)
        targets: list[TopKLogits] = []
        for part in _parts(documents, selection):
            places = self._complete(documents[part], selection)
            masks, ids = wanted[part], (given[part] if given else [None] * len(places))
            for ids_L, found, mask, given_RJ in zip(
                documents[part], places, masks, ids, strict=True
            ):
                rows_L = np.ones(len(ids_L) - 1, dtype=bool) if mask is None else mask
                rows = _rows(ids_L, found, rows_L, selection)
                targets.append(targets_of(rows, self._given(ids_L, rows_L, given_RJ), selection))
        self._recheck()
        return targets

    def _complete(self, documents: Sequence[Int32], selection: Selection) -> list[list[Any]]:
        """``prompt_logprobs`` of each document."""
        count = min(selection.k, selection.vocab_size)
        body = completion(self._source["model"], documents, count)

        def read(reply: Reply) -> list[list[Any]]:
            if reply.status != 200:
                raise TeacherError(refusal(self._connection.url, reply, count))
            return prompt_logprobs(reply.value(), documents)

        entries = sum(map(len, documents)) * (count + 1)
        limit = (1 << 20) + entries * _MOST_ENTRY_BYTES
        return self._connection.ask("/v1/completions", read, body=body, limit=limit)

    def _given(
        self, ids_L: Int32, wanted: NDArray[np.bool_], given_RJ: Int32 | None
    ) -> list[dict[int, float]]:
        """Log-probabilities of the given ids of each row."""
        if given_RJ is None or not given_RJ.size:
            return [{} for _ in wanted]
        first = int(np.flatnonzero(wanted)[0])
        asked = np.zeros((len(wanted) - first, given_RJ.shape[1]), dtype=np.int32)
        asked[wanted[first:]] = given_RJ
        body = given_request(self._source["model"], ids_L, first, asked)

        def read(reply: Reply) -> Float32:
            if reply.status != 200:
                raise TeacherError(no_given(self._connection.url, reply))
            return matrix(self._connection.url, reply, asked.shape)

        scores = self._connection.ask(
            "/inference/v1/generate", read, body=body, limit=(1 << 20) + 16 * asked.size
        )
        return given_entries(given_RJ, scores[wanted[first:]], wanted)

    def _recheck(self) -> None:
        """After a break, the server must be the one it was before.

        Raises:
            MismatchError: it is not; names both.
        """
        if not self._connection.was_silent:
            return
        self._connection.was_silent = False
        model, version = who(self._connection, starting=False)
        now = {**self._source, **_named(model, version)}
        lines = differences(self._source, now)
        if lines:
            raise MismatchError(
                f"the server at {self._connection.url} came back with another teacher. They "
                "differ in (before / now):\n  " + "\n  ".join(lines)
            )


def _named(model: Mapping[str, Any], version: str) -> dict[str, Any]:
    return {"model": model["id"], "root": model.get("root"), "version": version}


def _source(model: Mapping[str, Any], version: str, config: RemoteConfig) -> dict[str, Any]:
    """Who the teacher is, as far as its server tells; the tokenizer is taken to be right."""
    return {
        "engine": "vllm",
        **_named(model, version),
        "tokenizer": config.tokenizer,
        "vocab_size": config.vocab_size,
    }


def _check_vocabulary(connection: Connection, model: str, vocab_size: int) -> None:
    """The server must know the student's last token; whether it has more it does not tell.

    Raises:
        MismatchError: it does not.
    """
    last = np.array([vocab_size - 1, vocab_size - 1], dtype=np.int32)

    def read(reply: Reply) -> None:
        if reply.status == 400:
            raise MismatchError(
                f"the student's vocabulary has {vocab_size} tokens; the server at "
                f"{connection.url} refuses the last of them: {reply.message()}. Expected a teacher "
                "with the student's tokenizer"
            )
        check_status(connection, reply)

    connection.ask("/v1/completions", read, body=completion(model, [last], 1))


def _rows(
    ids_L: Int32, places: Sequence[Any], wanted: NDArray[np.bool_], selection: Selection
) -> list[Row | None]:
    """Rows of a document: place t scores token t, which is row t - 1."""
    return [
        read_row(places[row + 1], int(ids_L[row + 1]), selection.vocab_size) if want else None
        for row, want in enumerate(wanted.tolist())
    ]


def _parts(documents: Sequence[Int32], selection: Selection) -> Iterator[slice]:
    """Consecutive documents whose answer together has about the size that one should have."""
    budget = max(1, _ANSWER_BYTES // (_ENTRY_BYTES * (selection.k + 1)))
    first = held = 0
    for place, ids_L in enumerate(documents):
        if place > first and held + len(ids_L) > budget:
            yield slice(first, place)
            first, held = place, 0
        held += len(ids_L)
    if documents:
        yield slice(first, len(documents))


def _check_selection(selection: Selection) -> None:
    if selection.temperatures:
        raise ConfigError(
            "a vLLM server gives log-probabilities at temperature 1 alone, so there is no "
            f"log-normaliser at {', '.join(map(str, selection.temperatures))}: set --temperature "
            "1, or serve the teacher with cachekd serve-teacher"
        )
    if selection.samples or selection.tau:
        raise ConfigError("a vLLM server gives exact heads; sampled entries are not served")


PLUGIN = VLLMTeacher
