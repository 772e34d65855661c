"""The two compressions of DistillKit: settings, decoding, and encoding of the current one.

Comes in: the compressor's settings, and rows of bytes, words or values. Goes out: token ids and
log-probabilities of the k entries of each row, in the order of the file. Published at
https://github.com/arcee-ai/DistillKit (``distillkit/compression``); written from its description.

    current   values: exact_k values | coefficients of a curve over the others | for each bin of
              residuals a scale and packed numbers; ids: k numbers of ceil(log2 d) bits
    legacy    columns of exact values, of coefficients, and of ids packed in 64-bit words
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from cachekd.data import limits, strict
from cachekd.errors import DataError
from cachekd.exchange._bits import bytes_for, pack, unpack, unpack_words, width_of
from cachekd.exchange._curves import (
    Float64,
    Term,
    bfloat16_bits,
    curve,
    legacy_curve,
    values_of,
)
from cachekd.types import Float32, Int64, UInt8

_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_MOST_BITS = 32
_MOST_K = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Residuals of some entries: one scale, and a packed number each."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    def bytes(self) -> int:
        """Bytes a row."""
        return _WIDTHS[self.scale_dtype] + bytes_for(self.num_elements, self.element_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressor:
    """Settings of the current compression, with the defaults that DistillKit gives them."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[Term, ...] = ()
    term_dtype: str = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of a row."""
        exact = self.exact_k * _WIDTHS[self.exact_dtype]
        terms = len(self.polynomial_terms) * _WIDTHS[self.term_dtype]
        return exact + terms + sum(part.bytes() for part in self.residual_bins)

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids of a row."""
        return bytes_for(self.k, width_of(self.d))


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyCompressor:
    """Settings of the legacy compression."""

    k: int
    exact_k: int
    polynomial_degree: int
    vocab_size: int
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: str = "float32"

    @property
    def terms(self) -> int:
        """Coefficients of a row."""
        return self.polynomial_degree + 1 + self.with_sqrt_term if self.exact_k < self.k else 0

    @property
    def words(self) -> int:
        """64-bit words of a row's ids."""
        return -(-self.k // (64 // width_of(self.vocab_size)))


def settings_of(content: Any, name: str, *, legacy: bool) -> Compressor | LegacyCompressor:
    """Settings from a compression config, or from the training config that holds one.

    Raises:
        DataError: it is none, or holds what cannot be; names the field.
    """
    inner = content
    if isinstance(content, Mapping) and isinstance(content.get("teacher"), Mapping):
        inner = content["teacher"].get(
            "legacy_logit_compression" if legacy else "logprob_compressor"
        )
    kind = LegacyCompressor if legacy else Compressor
    known = {item.name for item in fields(kind)}
    if not isinstance(inner, Mapping) or not {"k", "exact_k"} <= {*inner} <= known:
        found = ", ".join(map(str, inner)) if isinstance(inner, Mapping) else type(inner).__name__
        raise DataError(
            f"{name}: expected the settings of a DistillKit compressor: "
            f"{', '.join(sorted(known))}; found {found[:300]}"
        )
    try:
        return _legacy(inner) if legacy else _current(inner)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name}: not the settings of a DistillKit compressor: {error}") from error


def _current(given: Mapping[str, Any]) -> Compressor:
    k = strict.whole(given["k"], _MOST_K, 1)
    terms = tuple(_term(term) for term in given.get("polynomial_terms") or ())
    bins = tuple(_bin(part, k) for part in given.get("residual_bins") or ())
    exact_k = strict.whole(given["exact_k"], k)
    if sum(part.num_elements for part in bins) > k - exact_k:
        raise ValueError("residual_bins hold more entries than are not exact")
    if exact_k < k and not terms and not bins:
        raise ValueError("exact_k is below k, and nothing describes the other entries")
    return Compressor(
        d=strict.whole(given["d"], limits.VOCABULARY, 2),
        k=k,
        exact_k=exact_k,
        exact_dtype=_dtype(given.get("exact_dtype", "float32")),
        polynomial_terms=terms,
        term_dtype=_dtype(given.get("term_dtype", "float32")),
        residual_bins=bins,
        delta_encoding=_flag(given.get("delta_encoding", True)),
        error_diffusion=_flag(given.get("error_diffusion", False)),
        normalize_t=_flag(given.get("normalize_t", False)),
    )


def _legacy(given: Mapping[str, Any]) -> LegacyCompressor:
    k = strict.whole(given["k"], _MOST_K, 1)
    return LegacyCompressor(
        k=k,
        exact_k=strict.whole(given["exact_k"], k),
        polynomial_degree=strict.whole(given["polynomial_degree"], 64),
        vocab_size=strict.whole(given["vocab_size"], limits.VOCABULARY, 2),
        invert_polynomial=_flag(given.get("invert_polynomial", True)),
        with_sqrt_term=_flag(given.get("with_sqrt_term", False)),
        term_dtype=_dtype(given.get("term_dtype", "float32")),
    )


def _term(value: Any) -> Term:
    if value in ("sqrt", "exp"):
        return str(value)
    return strict.whole(value, 64)


def _dtype(value: Any) -> str:
    if value not in _WIDTHS:
        raise ValueError(f"expected one of {', '.join(_WIDTHS)}; found {value!r}")
    return str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false; found {value!r}")
    return value


def _bin(given: Any, k: int) -> Bin:
    part = strict.fields(given)
    return Bin(
        scale_dtype=_dtype(part["scale_dtype"]),
        element_bits=strict.whole(part["element_bits"], _MOST_BITS, 1),
        num_elements=strict.whole(part["num_elements"], k, 1),
    )


def decode(settings: Compressor, values_RB: UInt8, ids_RB: UInt8) -> tuple[Int64, Float32]:
    """Ids int64 [R, k] and log-probabilities float32 [R, k] of rows of bytes."""
    place = 0

    def taken(count: int) -> UInt8:
        nonlocal place
        place += count
        return np.ascontiguousarray(values_RB[:, place - count : place])

    exact_RE = _floats(
        taken(settings.exact_k * _WIDTHS[settings.exact_dtype]), settings.exact_dtype
    )
    rest_RT = np.zeros((len(values_RB), settings.k - settings.exact_k), np.float32)
    if settings.polynomial_terms:
        width = len(settings.polynomial_terms) * _WIDTHS[settings.term_dtype]
        factors = _floats(taken(width), settings.term_dtype)
        terms = _terms(settings)
        rest_RT += values_of(factors, terms, settings.term_dtype)
    first = 0
    for part in settings.residual_bins:
        scale_R = _floats(taken(_WIDTHS[part.scale_dtype]), part.scale_dtype)
        packed = taken(bytes_for(part.num_elements, part.element_bits))
        steps = unpack(packed, part.element_bits, part.num_elements).astype(np.float32)
        steps = 2 * steps - 1 if part.element_bits == 1 else steps - 2 ** (part.element_bits - 1)
        with np.errstate(invalid="ignore"):  # an overflow of half precision is found as NaN
            rest_RT[:, first : first + part.num_elements] += steps * scale_R
        first += part.num_elements
    logprobs_RK = np.concatenate([exact_RE, rest_RT], axis=1)
    if settings.delta_encoding:
        logprobs_RK = np.cumsum(logprobs_RK, axis=1, dtype=np.float32)
    return unpack(ids_RB, width_of(settings.d), settings.k), logprobs_RK


def decode_legacy(
    settings: LegacyCompressor, words_RW: np.ndarray, exact_RE: Float32, factors_RT: Float32
) -> tuple[Int64, Float32]:
    """Ids int64 [R, k] and values float32 [R, k] of legacy rows."""
    parts = [exact_RE]
    if settings.exact_k < settings.k:
        terms = legacy_curve(
            settings.polynomial_degree,
            settings.k - settings.exact_k,
            inverted=settings.invert_polynomial,
            root=settings.with_sqrt_term,
        )
        parts.append(values_of(factors_RT, terms))
    ids_RK = unpack_words(words_RW, width_of(settings.vocab_size), settings.k)
    return ids_RK, np.concatenate(parts, axis=1).astype(np.float32)


def encode(settings: Compressor, ids_RK: Int64, logprobs_RK: Float32) -> tuple[UInt8, UInt8]:
    """Bytes of the values and of the ids of rows, best entry first; exact entries and a curve."""
    assert not (settings.residual_bins or settings.delta_encoding), "neither is written"
    exact = _bytes(logprobs_RK[:, : settings.exact_k], settings.exact_dtype)
    parts = [exact]
    if settings.polynomial_terms:
        rest_RT = logprobs_RK[:, settings.exact_k :].astype(np.float64)
        factors = rest_RT @ _solver(settings)
        parts.append(_bytes(factors.astype(np.float32), settings.term_dtype))
    return np.concatenate(parts, axis=1), pack(ids_RK, width_of(settings.d))


def _terms(settings: Compressor) -> Float64:
    """Terms of the curve, float64 [terms, k - exact_k]."""
    return curve(
        settings.polynomial_terms,
        settings.k - settings.exact_k,
        normalized=settings.normalize_t,
        dtype=settings.term_dtype,
    )


@lru_cache(maxsize=4)
def _solver(settings: Compressor) -> Float64:
    """What gives coefficients of least squares from values, float64 [k - exact_k, terms]."""
    return np.asarray(np.linalg.pinv(_terms(settings)), np.float64)


def _floats(data_RB: UInt8, dtype: str) -> Float32:
    """Little-endian numbers of rows of bytes."""
    if dtype == "bfloat16":
        halves = data_RB.view("<u2").astype(np.uint32) << 16
        return halves.view(np.float32)
    return data_RB.view(np.dtype(dtype).newbyteorder("<")).astype(np.float32)


def _bytes(values: Float32, dtype: str) -> UInt8:
    if dtype == "bfloat16":
        return bfloat16_bits(values).view(np.uint8)
    data = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return data.view(np.uint8)
