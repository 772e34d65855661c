"""Codecs of attention maps, and of queries and keys, against slow and obvious references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.codecs._attention import LayerRows
from cachekd.codecs._attention_maps import decode_maps, encode_maps
from cachekd.codecs._attention_qk import decode_qk, encode_qk
from cachekd.data.attention import AttentionSpec
from cachekd.errors import CorruptCache, TeacherError


def spec_of(kind: str = "maps", **further: Any) -> AttentionSpec:
    qk = kind == "qk"
    settings = {
        "layers": (0,),
        "heads": (0, 1),
        "teacher_heads": 2,
        "key_heads": 1,
        "head_width": 4,
        "rows": "all",
        "share": 1.0,
        "seed": 0,
        "keys": 0,
        "values": "qk" if qk else "sqrt",
        "step": 0.03 if qk else 1 / 63,
    }
    return AttentionSpec(kind=kind, **{**settings, **further})


def random_maps(seed: int, heads: int, rows: np.ndarray, length: int, sharp: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(heads, len(rows), length)) * sharp
    scores = np.where(np.arange(length) <= rows[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def some_rows(seed: int, length: int) -> np.ndarray:
    keep = np.random.default_rng(seed).random(length) < 0.7
    keep[seed % length] = True
    return keep.nonzero()[0].astype(np.int32)


def as_rows(layer: LayerRows) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum(layer.counts)
    return [
        (layer.keys[e - c : e], layer.probs[e - c : e])
        for e, c in zip(ends, layer.counts, strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.sampled_from([0, 1, 2, 7, 64]),
    st.sampled_from(["sqrt", "log"]),
    st.floats(0.0, 6.0),
)
def test_maps_against_a_row_by_row_reference(
    seed: int, length: int, keys: int, values: str, sharp: float
) -> None:
    step = 1 / 63 if values == "sqrt" else 0.25
    spec = spec_of(keys=keys, values=values, step=step)
    rows = some_rows(seed, length)
    maps = random_maps(seed, 2, rows, length, sharp)
    layer = decode_maps(spec, encode_maps(spec, maps, rows), rows, length)
    assert layer.rest.shape == (2, len(rows))
    decoded = as_rows(layer)
    for n, (found, probs) in enumerate(decoded):
        head, r = divmod(n, len(rows))
        row = maps[head, r, : rows[r] + 1].astype(np.float64)
        best = (
            set(np.argsort(-row[1:], kind="stable")[: keys - 1] + 1) | {0}
            if keys
            else set(range(len(row)))
        )
        if values == "sqrt":
            kept = {j for j in best if np.rint(np.float32(row[j]) ** 0.5 / step) > 0}
            rough = {j: (np.rint(np.float32(row[j]) ** 0.5 / step) * step) ** 2 for j in kept}
        else:
            kept = {j for j in best if row[j] >= np.exp(-10.0)}
            rough = {j: np.exp(-np.rint(-np.log(row[j]) / step) * step) for j in kept}
        assert found.tolist() == sorted(kept)
        rest = layer.rest[head, r]
        true_rest = 1 - sum(row[j] for j in kept)
        assert abs(np.sqrt(rest) - np.sqrt(max(true_rest, 0))) < 1 / 255 or len(kept) == 0
        assert (rest > 0) == (len(kept) < len(row))
        assert probs.sum() + rest == pytest.approx(1, abs=1e-5)
        scale = (1 - rest) / max(sum(rough.values()), 1e-30)
        assert probs == pytest.approx([rough[j] * scale for j in sorted(kept)], abs=1e-6, rel=1e-4)


def exact(q: np.ndarray, k: np.ndarray, rows: np.ndarray) -> np.ndarray:
    scores = np.einsum("hrd,ld->hrl", q.astype(np.float64), k[0].astype(np.float64))
    scores = np.where(np.arange(k.shape[1]) <= rows[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.01, 3.0))
def test_queries_and_keys_give_the_maps_again(seed: int, length: int, size: float) -> None:
    spec, rng, rows = (
        spec_of("qk", step=1 / 512),
        np.random.default_rng(seed),
        some_rows(seed, length),
    )
    q = (rng.normal(size=(2, len(rows), 4)) * size).astype(np.float32)
    # A dimension with a large mean, as real keys have: it must cost neither range nor precision.
    k = (rng.normal(size=(1, length, 4)) * size + np.array([9.0, 0, 0, -3.0])).astype(np.float32)
    layer = decode_qk(spec, encode_qk(spec, q, k), rows, length)
    truth = exact(q, k, rows)
    for n, (found, probs) in enumerate(as_rows(layer)):
        head, r = divmod(n, len(rows))
        assert found.tolist() == list(range(rows[r] + 1))
        assert probs == pytest.approx(truth[head, r, : rows[r] + 1], abs=0.05)
    assert not layer.rest.any()


def test_a_finer_step_is_nearer_for_both_kinds() -> None:
    rows = np.arange(48, dtype=np.int32)
    rng = np.random.default_rng(0)
    q, k = (
        rng.normal(size=(2, 48, 4)).astype(np.float32),
        rng.normal(size=(1, 48, 4)).astype(np.float32),
    )
    truth = exact(q, k, rows)

    def kl(layer: LayerRows) -> float:
        total = 0.0
        for n, (found, probs) in enumerate(as_rows(layer)):
            head, r = divmod(n, len(rows))
            row = truth[head, r, : r + 1]
            read = np.full(r + 1, layer.rest[head, r] / max(r + 1 - len(found), 1))
            read[found] = probs
            total += (row * np.log(row / read)).sum()
        return total / (2 * len(rows))

    def qk(step: float) -> float:
        spec = spec_of("qk", step=step)
        return kl(decode_qk(spec, encode_qk(spec, q, k), rows, 48))

    def maps(step: float) -> float:
        spec = spec_of(step=step)
        return kl(decode_maps(spec, encode_maps(spec, truth.astype(np.float32), rows), rows, 48))

    assert qk(0.01) < qk(0.05) < qk(0.2) and qk(0.01) < 1e-3
    assert maps(1 / 255) < maps(1 / 63) < maps(1 / 15) and maps(1 / 255) < 1e-3


def test_a_query_that_no_level_holds_is_refused() -> None:
    q, k = np.full((2, 3, 4), 1e6, np.float32), np.ones((1, 3, 4), np.float32)
    k[:, 0] = 1e6
    with pytest.raises(TeacherError, match="raise attention_step"):
        encode_qk(spec_of("qk"), q, k)
    with pytest.raises(TeacherError, match="not finite"):
        encode_qk(spec_of("qk"), q * np.nan, k)


def frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(content)


@pytest.mark.parametrize("kind", ["maps", "top", "qk"])
def test_another_size_is_refused_before_it_is_unpacked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("qk") if kind == "qk" else spec_of(keys=3 if kind == "top" else 0)
    decode = decode_qk if kind == "qk" else decode_maps
    rows = np.arange(5, dtype=np.int32)
    bomb = frame(bytes(1 << 20))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", lambda **_: pytest.fail("unpacked"))
    with pytest.raises(CorruptCache, match="claims 1048576 bytes"):
        decode(spec, bomb, rows, 5)
    with pytest.raises(CorruptCache):
        decode(spec, b"", rows, 5)


def test_contents_that_no_encoder_writes_are_refused() -> None:
    rows = np.arange(2, dtype=np.int32)
    whole = spec_of()  # 2 heads x rows of 1 and 2 keys: 4 rests, 6 levels
    with pytest.raises(CorruptCache, match="rest of a decoded row"):
        decode_maps(whole, frame(bytes(4) + bytes([63, 63, 0, 63, 63, 0])), rows, 2)
    limited = spec_of(keys=2)
    counts = 6

    def planes(gaps: list[int]) -> bytes:
        low = bytes(g & 255 for g in gaps)
        return frame(bytes(4) + low + bytes(g >> 8 for g in gaps) + bytes([63] * counts))

    assert decode_maps(limited, planes([0, 0, 1, 0, 0, 1]), rows, 2).keys.tolist() == [
        0,
        0,
        1,
        0,
        0,
        1,
    ]
    with pytest.raises(CorruptCache, match="after its own position"):
        decode_maps(limited, planes([1, 0, 1, 0, 0, 1]), rows, 2)
    with pytest.raises(CorruptCache, match="names a key twice"):
        decode_maps(limited, planes([0, 0, 0, 0, 0, 1]), rows, 2)


@pytest.mark.parametrize("kind", ["maps", "top", "qk"])
def test_every_flip_of_a_small_layer_is_refused(kind: str) -> None:
    spec = spec_of("qk") if kind == "qk" else spec_of(keys=3 if kind == "top" else 0)
    rows = np.arange(6, dtype=np.int32)
    maps = random_maps(1, 2, rows, 6, 2.0)
    rng = np.random.default_rng(0)
    if kind == "qk":
        q, k = rng.normal(size=(2, 6, 4)), rng.normal(size=(1, 6, 4))
        data = encode_qk(spec, q.astype(np.float32), k.astype(np.float32))
    else:
        data = encode_maps(spec, maps, rows)
    decode = decode_qk if kind == "qk" else decode_maps
    truth = decode(spec, data, rows, 6)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                found = decode(spec, bytes(damaged), rows, 6)
            except CorruptCache:
                continue
            # A reserved bit of the frame header may be free; the values may not.
            assert (found.keys == truth.keys).all() and (found.probs == truth.probs).all()


def test_the_specs_of_strangers_are_checked() -> None:
    good = spec_of().to_json()
    assert AttentionSpec.from_json(good) == spec_of()
    bad = [
        {"kind": "pickle"},
        {"step": 0.0},
        {"step": float("nan")},
        {"heads": []},
        {"heads": [7]},
        {"layers": []},
        {"key_heads": 0},
        {"head_width": 0},
        {"share": 0.0},
        {"values": "qk"},
        {"layers": None},
    ]
    for change in bad:
        with pytest.raises(CorruptCache):
            AttentionSpec.from_json({**good, **change})
