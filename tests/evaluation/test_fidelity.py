"""Figures of sparse targets against slow sums over the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cachekd.codecs import CodecHeader
from cachekd.codecs.packed import PackedCodec
from cachekd.evaluation import dense
from cachekd.evaluation.dense import dense_rows, joined, take
from cachekd.evaluation.fidelity import Unigram, fidelity, references
from cachekd.teachers import Selection
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.types import TopKLogits

VOCAB = 40
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)


def selection(k: int, p: float = 1.0) -> Selection:
    return Selection(k=k, p=p, min_k=1, vocab_size=VOCAB, temperatures=(2.0,))


def tiles(**further: object) -> list[dense.DenseRows]:
    settings = {
        "vocab_size": VOCAB,
        "temperatures": (2.0,),
        "wanted": [None],
        "best": VOCAB,
    } | further
    return list(dense_rows(DummyTeacher(), [IDS], len(IDS), **settings))  # type: ignore[arg-type]


def decoded(k: int, values: str, step: float | None = None) -> TopKLogits:
    """Targets of the dummy teacher as the packed codec gives them back."""
    header = CodecHeader(
        codec="packed", vocab_size=VOCAB, values=values, step=step, temperatures=(2.0,)
    )
    codec = PackedCodec(header)
    (targets,) = DummyTeacher().score([IDS], len(IDS), selection(k), [None])
    return codec.decode([(codec.encode(targets), targets.rows, len(targets.ids))])[0]


def softmax64(temperature: float = 1.0) -> np.ndarray:
    logits = dummy_logits(IDS, VOCAB)[:-1].astype(np.float64) / temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def spread_out(targets: TopKLogits, row: int, root: np.ndarray, temperature: float) -> np.ndarray:
    """The decoded row as a whole distribution, by the decode law."""
    entries = slice(targets.offsets[row], targets.offsets[row + 1])
    ids = targets.ids[entries]
    head = np.exp(targets.logprobs[entries].astype(np.float64))
    tail = math.exp(targets.tail[row])
    head *= (1 - tail) / head.sum()
    if temperature != 1:
        head = head ** (1 / temperature) / math.exp(targets.lognorm[temperature][row])
        head /= head.sum() if tail == 0 or head.sum() >= 1 else 1
        tail = 1 - head.sum()
    q = np.zeros(VOCAB)
    rest = np.setdiff1d(np.arange(VOCAB), ids)
    q[ids] = head
    if len(rest):
        q[rest] = tail * root[rest] / root[rest].sum()
    return q


def test_dense_rows_are_the_softmax_in_whatever_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = tiles()
    assert whole.p_NV == pytest.approx(softmax64(), abs=1e-6)
    assert (whole.best_NK[:, 0] == softmax64().argmax(1)).all()
    monkeypatch.setattr(dense, "_ANSWER", 3 * VOCAB)
    monkeypatch.setattr(dense, "_TILE", 2 * VOCAB)
    pieces = tiles()
    assert [len(piece.rows) for piece in pieces] == [2, 1, 2, 1, 1]
    assert np.array_equal(np.concatenate([piece.rows for piece in pieces]), whole.rows)
    assert np.array_equal(np.concatenate([piece.p_NV for piece in pieces]), whole.p_NV)


def test_dense_rows_of_a_batch_are_those_that_are_wanted() -> None:
    wanted = np.array([False, True, True, False, False, True, False])
    (found,) = tiles(wanted=[wanted])
    assert found.rows.tolist() == [1, 2, 5]
    assert found.p_NV == pytest.approx(softmax64()[wanted], abs=1e-6)


@pytest.mark.parametrize("k", [1, 6, VOCAB - 1, VOCAB])
@pytest.mark.parametrize(("values", "step"), [("float16", None), ("float32", None), ("log", 0.125)])
def test_figures_equal_slow_sums(k: int, values: str, step: float | None) -> None:
    (tile,) = tiles()
    targets = decoded(k, values, step)
    log_unigram = np.log(np.linspace(1, 5, VOCAB) / np.linspace(1, 5, VOCAB).sum())
    found = fidelity(references(tile), targets, Unigram.of(log_unigram))
    flat, root = np.ones(VOCAB), np.exp(log_unigram / 2)
    for row, p in enumerate(tile.p_NV):
        ids = targets.ids[targets.offsets[row] : targets.offsets[row + 1]]
        for t in (1, 2, 4):
            raised = p ** (1 / t)
            assert found[f"mass_{t}"][row] == pytest.approx(raised[ids].sum() / raised.sum())
        for name, weights, t in (
            ("kl_flat", flat, 1.0),
            ("kl_unigram", root, 1.0),
            ("kl_flat_2", flat, 2.0),
        ):
            q = spread_out(targets, row, weights, t)
            at = p ** (1 / t) / (p ** (1 / t)).sum()
            if (q[at > 0] <= 0).any():
                continue  # rounding took the tail: counted as 1e-6, not as infinite
            slow = (at * (np.log(at) - np.log(q))).sum()
            assert found[name][row] == pytest.approx(slow, abs=2e-9), name
        error = ((spread_out(targets, row, flat, 1.0) - p) ** 2).sum()
        assert found["error"][row] == pytest.approx(error, abs=1e-12)


def test_the_whole_vocabulary_in_float32_loses_nothing() -> None:
    (tile,) = tiles()
    found = fidelity(references(tile), decoded(VOCAB, "float32"), None)
    assert found["mass_4"] == pytest.approx(1)
    assert np.abs(found["kl_flat"]).max() < 1e-9


def test_pieces_put_together_are_the_document() -> None:
    (targets,) = DummyTeacher().score([IDS], len(IDS), selection(40, 0.9), [None])
    captured = np.array([True, True, False, True, False, True, True])
    rows = captured.nonzero()[0]
    again = joined([take(targets, rows[:2]), take(targets, rows[2:])], captured)
    assert np.diff(again.offsets)[~captured].tolist() == [0, 0]
    for row in rows:
        at = slice(targets.offsets[row], targets.offsets[row + 1])
        assert np.array_equal(
            again.ids[again.offsets[row] : again.offsets[row + 1]], targets.ids[at]
        )
    assert np.array_equal(again.tail[captured], targets.tail[captured])
