"""Attention beside the logits, in one teacher pass: the choice, the teacher's wrapper, the units.

In: settings, the teacher's configuration, and documents as they are scored. Out: what is said of
attention in the identity and the report, and the encoded attention of each document.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.capture.documents import ResponseRows
from cachekd.capture.faults import check_arrived, check_attention
from cachekd.capture.identify import check_same
from cachekd.codecs._attention_maps import encode_maps
from cachekd.codecs._attention_qk import encode_qk
from cachekd.config import PrecomputeConfig
from cachekd.data.attention import AttentionSpec, attention_shape, attention_spec, drawn_rows
from cachekd.data.attention_budget import choose, estimate
from cachekd.data.digests import sample_key
from cachekd.errors import MismatchError, TeacherError
from cachekd.store.attention_shards import EncodedAttention
from cachekd.store.identity import Identity, capture_id
from cachekd.store.io import Location
from cachekd.store.state import CacheState
from cachekd.teachers import AttentiveTeacher, Selection, Teacher, TeacherFacts
from cachekd.types import Float32, Int32, Int64, TopKLogits

_log = logging.getLogger(__name__)


def with_attention(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    identity: Identity,
    state: CacheState | None,
    location: Location,
    lengths: Int64,
) -> Identity:
    """The identity of a run with what it keeps of the attention.

    A budget is turned into a choice by the first run of a cache; later runs follow that choice.

    Raises:
        ConfigError: the teacher has no such layer or head, or the budget is too small.
        MismatchError: the cache was captured with other attention.
    """
    stored = state.identity if state else None
    if config.attention == "none":
        spec = None
    elif config.attention == "auto" and stored and stored.attention is not None:
        spec = AttentionSpec.from_json(stored.attention)
    else:
        spec = _choice(config, facts, lengths)
    attention = {**spec.to_json(), "attn_implementation": "eager"} if spec else None
    asked = replace(
        identity,
        attention=attention,
        attention_id=capture_id(identity.source_id, attention) if attention else None,
    )
    if stored:
        check_same(stored, asked, location)
    return asked


def _choice(config: PrecomputeConfig, facts: TeacherFacts, lengths: Int64) -> AttentionSpec:
    shape = attention_shape(facts.config)
    if config.attention != "auto":
        return attention_spec(config, shape)
    chosen = choose(config, shape, lengths)
    _log.warning(
        "attention: a budget of %d bytes a token gives %s, about %.0f bytes a token",
        config.attention_budget,
        told(chosen.spec),
        chosen.bytes_per_token,
    )
    return chosen.spec


def told(spec: AttentionSpec) -> str:
    """A choice in words."""
    heads = "mean of heads" if spec.heads == (-1,) else f"heads {_numbers(spec.heads)}"
    keys = f", {spec.keys} keys a row" if spec.keys else ""
    share = "" if spec.share == 1 else f" (a share of {spec.share:g}, drawn)"
    return (
        f"{spec.kind} of layers {_numbers(spec.layers)}, {heads}, {spec.rows} rows{share}{keys}, "
        f"{spec.values} step {spec.step:.4g}"
    )


def _numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def beside(identity: Identity, stored: Identity) -> Identity:
    """An identity with the attention of a cache: to compare all the rest first."""
    return replace(identity, attention=stored.attention, attention_id=stored.attention_id)


def refuse_other_kinds(config: PrecomputeConfig, stored: Identity, location: Location) -> None:
    """Refuse to add attention to a cache of logits alone, or logits alone to one with both.

    Raises:
        MismatchError: says which of the two, and what to do.
    """
    asked = config.attention != "none"
    if asked and stored.attention is None:
        raise MismatchError(
            f"precompute: the cache {location.url} holds logits alone, and this run asks for "
            "attention as well. Attention is captured in the same pass as the logits: use a new "
            "cache, or pass --attention none"
        )
    if not asked and stored.attention is not None:
        raise MismatchError(
            f"precompute: the cache {location.url} holds attention with its logits, and this run "
            "asks for none. Pass the attention settings of its first run (cachekd inspect shows "
            "them), or use a new cache"
        )


def describe_attention(spec: AttentionSpec, lengths: Int64) -> dict[str, Any]:
    """What a report says of a choice."""
    return {
        "attention_targets": told(spec),
        "attention_bytes_per_token_estimated": round(estimate(spec, lengths), 1),
    }


class AttendingTeacher:
    """A teacher whose `score` also encodes the attention of what it scores.

    Attention is kept by document, so that batches that are tried again or split need no care.

    Args:
        teacher: the loaded teacher.
        spec: what is kept.
        wanted: rows to capture by key, or None for all rows of all keys.

    Raises:
        TeacherError: the backend cannot tell its attention.
    """

    def __init__(
        self,
        teacher: Teacher,
        spec: AttentionSpec,
        wanted: ResponseRows | None,
    ) -> None:
        if not isinstance(teacher, AttentiveTeacher):
            raise TeacherError(
                "this backend gives no attention; use --backend hf, or --attention none"
            )
        self._teacher = teacher
        self._spec = spec
        self._wanted = wanted
        self._taken: dict[bytes, EncodedAttention] = {}

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Those of the teacher."""
        return self._teacher.numerics

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`.

        Raises:
            TeacherError: attention of a layer did not come, or is none.
        """
        keys = [sample_key(document) for document in documents]
        rows = [self._rows(key, len(ids) - 1) for key, ids in zip(keys, documents, strict=True)]
        layers: list[dict[int, bytes]] = [{} for _ in documents]

        def sink(document: int, place: int, arrays: tuple[Float32, ...]) -> None:
            check_attention(arrays, self._spec, rows[document], place)
            layers[document][place] = self._encode(arrays, rows[document])

        with self._teacher.attention(self._spec, rows, sink):
            scores = self._teacher.score(documents, padded_length, selection, wanted, given)
        for key, mask, found in zip(keys, rows, layers, strict=True):
            check_arrived(found, self._spec)
            blocks = tuple(found[place] for place in range(len(self._spec.layers)))
            self._taken[key] = EncodedAttention(rows=mask, layers=blocks)
        return scores

    def take(self, keys: Sequence[bytes]) -> list[EncodedAttention]:
        """Attention of documents that were scored, once."""
        return [self._taken.pop(key) for key in keys]

    def _rows(self, key: bytes, count: int) -> NDArray[np.bool_]:
        drawn = drawn_rows(self._spec, key, count)
        return drawn if self._wanted is None else drawn & self._wanted[key]

    def _encode(self, arrays: tuple[Float32, ...], rows: NDArray[np.bool_]) -> bytes:
        if not rows.any():
            return b""
        if self._spec.kind == "qk":
            queries, keys = arrays
            return encode_qk(self._spec, queries, keys)
        (maps,) = arrays
        return encode_maps(self._spec, maps, rows.nonzero()[0].astype(np.int32))
