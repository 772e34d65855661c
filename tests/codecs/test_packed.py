"""The packed codec: against a slow second decoder, over all grids, with and without priors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import reference_records as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import DIGEST, assert_same, encoded, entries, header, made_up, prior_of

from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import Prior
from cachekd.codecs._scalars import exact_scalars
from cachekd.codecs._streams import Frame
from cachekd.codecs.packed import PackedCodec
from cachekd.types import TopKLogits


def as_reference(prior: Prior) -> dict[str, Any]:
    return reference.parse_prior(prior.dump())


@st.composite
def headers(draw: st.DrawFn) -> CodecHeader:
    vocab = draw(st.sampled_from([1, 2, 255, 256, 257, 70_000, 200_000]))
    values = draw(st.sampled_from(["float16", "float32", "sqrt", "log"]))
    temperatures = draw(st.sampled_from([(), (2.0,), (0.5, 2.0, 4.0)]))
    kind = draw(st.sampled_from([{}, {}, {"samples": 7}, {"samples": 1000}, {"tau": 0.02}]))
    step = {"sqrt": [1 / 240, 1 / 24, 0.3, 1.0], "log": [1 / 240, 1 / 8, 1.0]}.get(values, [None])
    return header(
        vocab, values, temperatures=temperatures, step=draw(st.sampled_from(step)), **kind
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[PackedCodec, list[TopKLogits], Prior | None]:
    head = draw(headers())
    count = st.one_of(st.integers(0, 70), st.just(0), st.sampled_from([300, 1]))
    shape = st.lists(count, min_size=1, max_size=6)
    style = st.sampled_from(["zipf", "equal", "extreme", "close"])
    seeds = st.integers(0, 1 << 30)
    records = [
        made_up(head, draw(shape), draw(seeds), draw(style)) for _ in range(draw(st.integers(1, 3)))
    ]
    prior = None
    if draw(st.booleans()):
        prior = prior_of(head.vocab_size, draw(st.integers(0, 3)), draw(st.integers(1, 300)))
        head = replace(head, prior=DIGEST)
    return PackedCodec(head, prior), records, prior


def expected_values(head: CodecHeader, record: TopKLogits, found: TopKLogits, t: int) -> Any:
    """What a row must decode to, by a loop over its entries."""
    ids = record.ids[slice(*record.offsets[t : t + 2])].tolist()
    codes = []
    for token, (logp, weight) in zip(ids, entries(record, t).values(), strict=True):
        assert token in entries(record, t)
        if head.samples:
            codes.append(head.samples - round(np.exp(logp) * head.samples))
        elif weight:
            codes.append(None)
        elif head.values in ("float16", "float32"):
            dtype = np.dtype(head.values)
            rounded = np.maximum(np.float32(logp), np.finfo(dtype).min).astype(dtype)
            codes.append(int(np.abs(rounded).view(f"u{dtype.itemsize}")))
        elif head.values == "log":
            codes.append(int(min(65534, np.rint(-logp / head.step))))
        else:
            top = round(1 / head.step)
            codes.append(top - int(np.clip(np.rint(np.exp(logp / 2) / head.step), 1, top)))
    order = sorted(range(len(codes)), key=lambda i: (codes[i] is None, codes[i] or 0))
    values, weights = reference.values_of(
        [codes[i] for i in order], float(found.tail[t]), asdict(head)
    )
    return {ids[i]: (values[n], weights[n]) for n, i in enumerate(order)}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_goes_in_comes_out(case: tuple[PackedCodec, list[TopKLogits], Prior | None]) -> None:
    codec, records, prior = case
    head = codec._header
    packed = [encoded(codec, record) for record in records]
    together = codec.decode(packed)
    for record, stored, found in zip(records, packed, together, strict=True):
        assert stored[0] == codec.encode(record), "bytes are a function of the values"
        assert_same(codec.decode([stored])[0], found)
        assert np.array_equal(found.offsets, record.offsets)
        assert [a.dtype for a in (found.offsets, found.ids, found.logprobs)] == [
            np.int64, np.int32, np.float32,
        ]  # fmt: skip
        check_rows(head, record, found)
        check_reference(head, stored, found, prior)


def check_rows(head: CodecHeader, record: TopKLogits, found: TopKLogits) -> None:
    exact = head.values in ("float16", "float32")
    tolerance = 0 if exact and not head.samples else 3e-6
    for t in range(record.rows):
        mine, want = entries(found, t), expected_values(head, record, found, t)
        assert mine.keys() == want.keys()
        for token, (logp, weight) in mine.items():
            level, share = want[token]
            assert abs(logp - level) <= tolerance * max(1, abs(level)) or share
            assert weight is None or abs(weight - share) < 1e-6
            assert not share or abs(np.exp(logp) - share) < 1e-6
        span = slice(*found.offsets[t : t + 2])
        in_head = slice(None) if found.weights is None else found.weights[span] == 0
        values = found.logprobs[span][in_head].astype(np.float64)
        assert (np.diff(values) <= 0).all()
        if not exact and len(values):  # exact values are not scaled
            assert abs(np.exp(values).sum() + np.exp(found.tail[t]) - 1) < 1e-5
    if exact_scalars(head):
        assert found.tail.tobytes() == record.tail.tobytes()


def flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]


def check_reference(
    head: CodecHeader, stored: tuple[bytes, int, int], found: TopKLogits, prior: Prior | None
) -> None:
    """Ids in the same order and scalars as a second decoder reads them."""
    stated = json.loads(head.to_json())
    theirs = reference.decode(stored[0], stated, *stored[1:], prior and as_reference(prior))
    assert flat(theirs["ids"]) == found.ids.tolist()
    assert np.allclose(flat(theirs["logprobs"]), found.logprobs, 3e-6, 1e-6)
    for name in ("next_logprob", "entropy", "tail"):
        assert np.allclose(theirs[name], getattr(found, name), 1e-6, 0)
    assert theirs["lognorm"].keys() == found.lognorm.keys()
    assert all(np.allclose(theirs["lognorm"][t], v, 1e-6) for t, v in found.lognorm.items())


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 3), st.integers(1, 80))
def test_no_prior_changes_what_is_decoded(
    case: tuple[PackedCodec, list[TopKLogits], Prior | None], contexts: int, width: int
) -> None:
    """Nor does packing again what was decoded without its scale."""
    codec, records, _ = case
    head = replace(codec._header, prior=DIGEST)
    other = PackedCodec(head, prior_of(head.vocab_size, contexts, width, seed=9))
    packed = [encoded(codec, record) for record in records]
    decoded = codec.decode(packed)
    for found, want in zip(
        other.decode([encoded(other, r) for r in records]), decoded, strict=True
    ):
        assert_same(found, want)
    raw = codec.decode_unscaled(packed)
    again = other.decode([encoded(other, record) for record in raw])
    for found, want in zip(again, decoded, strict=True):
        assert_same(found, want)


def test_a_token_far_from_the_last_and_the_whole_vocabulary() -> None:
    """Gaps of more than a byte, of more than two; and k = V where no gap is left."""
    head = header(200_000, "float16", temperatures=())
    codec = PackedCodec(head)
    record = made_up(head, [5, 200_000], style="equal")
    wide = np.int32([0, 254, 510, 767, 199_999])
    record = replace(record, ids=np.concatenate([wide, np.arange(200_000, dtype=np.int32)]))
    data = codec.encode(record)
    found = codec.decode([(data, 2, 200_005)])[0]
    assert found.ids.tolist() == record.ids.tolist()
    assert len(data) < 200


def test_no_records_are_no_targets() -> None:
    assert PackedCodec(header(5)).decode([]) == []


def test_a_large_record_fits_a_frame() -> None:
    """More content than the window that a reader allows."""
    head = header(70_000, "float32", temperatures=())
    codec, record = PackedCodec(head), made_up(head, [70_000] * 40)
    stored = encoded(codec, record)
    assert Frame(stored[0], 8, 1 << 30)._raw[:1] != b""
    assert len(Frame(stored[0], 8, 1 << 30)._raw) > 8 << 20
    found = codec.decode([stored])[0]
    assert np.array_equal(np.sort(found.ids[:70_000]), np.arange(70_000))
