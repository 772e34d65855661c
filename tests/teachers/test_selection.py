"""Selection on a tile of rows against a dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.errors import BadTargets
from cachekd.teachers import Selection
from cachekd.teachers._assembly import Tile, assemble, select
from cachekd.teachers._selection import tile_rows


def keep(k: int, vocab: int, p: float = 1.0, min_k: int = 1) -> Selection:
    return Selection(k=k, p=p, min_k=min_k, vocab_size=vocab, temperatures=(0.5, 2.0))


def dense(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of each row in float64."""
    logits = logits.astype(np.float64)
    best = logits.max(axis=1, keepdims=True)
    return np.asarray(logits - best - np.log(np.exp(logits - best).sum(axis=1, keepdims=True)))


def log_sum(values: np.ndarray) -> float:
    best = values.max(initial=-np.inf)
    if best == -np.inf:
        return -np.inf
    return float(best + np.log(np.exp(values - best).sum()))


def run(logits: np.ndarray, selection: Selection, next_ids: np.ndarray | None = None) -> Tile:
    chosen = np.zeros(len(logits), dtype=np.int64) if next_ids is None else next_ids
    return select(torch.from_numpy(logits), torch.from_numpy(chosen), selection)


def head_length(row: np.ndarray, selection: Selection) -> int:
    """How many entries of a dense row are kept, by the words of `Selection`."""
    best = np.sort(row)[::-1][: selection.k]
    count, mass = 0, 0.0
    while count < len(best) and best[count] > -np.inf:
        if count >= selection.min_k and mass >= selection.p:
            break
        mass += np.exp(best[count])
        count += 1
    return count


def assert_is_right(tile: Tile, logits: np.ndarray, selection: Selection, next_ids: np.ndarray,
                    edge: float = 1e-5) -> None:  # fmt: skip
    """Every number of a tile; a head may be one longer or shorter where its mass is p to 1e-5."""
    table = dense(logits[:, : selection.vocab_size])
    place = 0
    for row, count in enumerate(tile.counts):
        part = slice(place, place + count)
        ids, logprobs, place = tile.ids[part], tile.logprobs[part], place + count
        if count != head_length(table[row], selection):
            masses = np.cumsum(np.exp(np.sort(table[row])[::-1]))
            assert np.abs(masses - selection.p).min() < edge
        assert len(set(ids.tolist())) == count and ids.min() >= 0 and ids.max() < table.shape[1]
        np.testing.assert_allclose(logprobs, table[row, ids], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(
            logprobs, np.sort(table[row])[::-1][:count], atol=1e-5, rtol=1e-5
        )
        assert (np.diff(logprobs) <= 0).all()
        equal = np.diff(logprobs) == 0
        assert (np.diff(ids)[equal] > 0).all(), "equal entries by ascending id"
        rest = np.delete(table[row], ids)
        want = [log_sum(rest), table[row, next_ids[row]], -sum_p_log_p(table[row])]
        want += [log_sum(table[row] / t) for t in selection.temperatures]
        np.testing.assert_allclose(tile.scalars[:, row], want, atol=3e-5, rtol=1e-4)
    assert place == len(tile.ids) == len(tile.logprobs)


def sum_p_log_p(row: np.ndarray) -> float:
    finite = row[row > -np.inf]
    return float((np.exp(finite) * finite).sum())


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, Selection, np.ndarray]:
    vocab, rows = draw(st.integers(2, 60)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    logits = rng.normal(0, draw(st.sampled_from([0.1, 1.0, 5.0, 40.0])), (rows, vocab))
    kind = draw(st.sampled_from(["plain", "ties", "flat", "holes"]))
    if kind == "ties":
        logits = np.round(logits)
    if kind == "flat":
        logits[:] = 3.25
    if kind == "holes":
        logits[rng.random(logits.shape) < 0.5] = -np.inf
        logits[:, draw(st.integers(0, vocab - 1))] = 0.0
    k = draw(st.integers(1, vocab))
    selection = keep(
        k, vocab, draw(st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-3])), draw(st.integers(1, k))
    )
    return logits.astype(np.float32), selection, rng.integers(0, vocab, rows)


@settings(max_examples=300, deadline=None)
@given(tables())
def test_selection_is_what_a_dense_reference_says(
    case: tuple[np.ndarray, Selection, np.ndarray],
) -> None:
    logits, selection, next_ids = case
    assert_is_right(run(logits, selection, next_ids), logits, selection, next_ids)


def test_a_large_vocabulary() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 152_064)).astype(np.float32)
    next_ids = rng.integers(0, 151_936, 3)
    selection = keep(64, 151_936, 0.99)
    assert_is_right(run(logits, selection, next_ids), logits, selection, next_ids)


@pytest.mark.parametrize("holes", [False, True])
def test_the_whole_vocabulary_has_no_tail(holes: bool) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, 50)).astype(np.float32)
    if holes:
        logits[:, ::3] = -np.inf
    tile = run(logits, keep(50, 50))
    assert (tile.scalars[0] == -np.inf).all()
    assert (tile.counts == np.isfinite(logits).sum(axis=1)).all()
    assert np.isfinite(tile.logprobs).all() and np.isfinite(tile.scalars[2:]).all()


def test_padding_of_the_vocabulary_is_cut_off_before_anything() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, 50)).astype(np.float32)
    padded = np.concatenate([logits, np.full((4, 14), 99.0, np.float32)], axis=1)
    padded[0, 60] = np.nan
    left, right = run(logits, keep(8, 50)), run(padded, keep(8, 50))
    assert left.ids.tolist() == right.ids.tolist()
    assert left.scalars.tobytes() == right.scalars.tobytes()


@pytest.mark.parametrize("gap", [10.0, 27.6, 60.0, 87.0])
def test_the_tail_of_a_peaked_row_is_right_in_log_space(gap: float) -> None:
    """A tail of 1e-12 and less, where 1 minus the head would be 0: to 1e-3 of its mass."""
    logits = np.random.default_rng(0).normal(0, 1, (6, 200)).astype(np.float32)
    logits[:, 7] = 4.0 + gap
    table = dense(logits)
    tile = run(logits, keep(1, 200))
    want = [log_sum(np.delete(row, 7)) for row in table]
    assert tile.ids.tolist() == [7] * 6 and max(want) < -gap + 10
    assert np.abs(np.expm1(tile.scalars[0] - want)).max() < 1e-3
    assert np.isfinite(tile.scalars).all() and (tile.logprobs <= 0).all()


def test_at_least_min_k_are_kept_and_no_impossible_ones() -> None:
    logits = np.float32([[9.0, 0.0, -1.0, -2.0, -np.inf], [9.0, 0.0] + [-np.inf] * 3])
    for min_k, counts in ((1, [1, 1]), (3, [3, 2]), (5, [4, 2])):
        assert run(logits, keep(5, 5, 0.5, min_k)).counts.tolist() == counts


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_distribution_is_refused_and_named(bad: float) -> None:
    logits = np.zeros((5, 9), dtype=np.float32)
    logits[2, 3] = logits[4, 0] = bad
    masks = [np.array([True, False, True]), np.array([False, True, True, True])]
    with pytest.raises(BadTargets, match="NaN or infinite logits in 2 of 5 rows") as caught:
        assemble([run(logits, keep(4, 9))], masks, keep(4, 9))
    assert caught.value.rows == {1: [1, 3]}


def test_a_row_of_nothing_is_refused() -> None:
    logits = np.zeros((2, 9), dtype=np.float32)
    logits[1] = -np.inf
    with pytest.raises(BadTargets, match="in 1 of 2 rows"):
        assemble([run(logits, keep(4, 9))], [np.ones(2, bool)], keep(4, 9))


def test_masked_logits_of_huge_size_stay_finite() -> None:
    """Some models mask tokens with the lowest finite number instead of -inf."""
    logits = np.zeros((1, 4), dtype=np.float32)
    logits[0, 2] = np.finfo(np.float32).min
    tile = run(logits, keep(4, 4))
    assert np.isfinite(tile.logprobs).all() and tile.ids.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_where_tiles_end_does_not_matter(step: int) -> None:
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(0, 3, (7, 90)), 1).astype(np.float32)
    next_ids = rng.integers(0, 90, 7)
    selection = keep(12, 90, 0.9, 2)
    masks = [np.array([True, False, True]), np.zeros(2, bool), np.ones(5, bool)]
    whole = assemble([run(logits, selection, next_ids)], masks, selection)
    parts = [
        run(logits[i : i + step], selection, next_ids[i : i + step]) for i in range(0, 7, step)
    ]
    for left, right in zip(whole, assemble(parts, masks, selection), strict=True):
        for name in ("offsets", "ids", "logprobs", "tail", "next_logprob", "entropy"):
            assert getattr(left, name).tobytes() == getattr(right, name).tobytes()
        assert left.lognorm.keys() == {1.0, 0.5, 2.0} and (left.lognorm[1.0] == 0).all()
    first, nothing, last = whole
    assert np.diff(first.offsets).tolist()[1] == 0 and first.tail[1] == 0 and first.tail[0] < 0
    assert nothing.offsets.tolist() == [0, 0, 0] and len(nothing.ids) == 0
    assert last.rows == 5 and last.offsets[-1] == len(last.ids) == len(last.logprobs)


def test_a_tile_has_at_least_one_row() -> None:
    assert tile_rows("cpu", 1 << 30) == tile_rows("cuda", 1 << 30) == 1
    assert tile_rows("cuda", 1000) > tile_rows("cpu", 1000) > 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (3, 5000))).to(dtype)
    next_ids = torch.tensor([1, 2, 3])
    tile = select(logits, next_ids, keep(32, 5000, 0.9))
    assert_is_right(tile, logits.float().numpy(), keep(32, 5000, 0.9), next_ids.numpy())


def assert_given_are_kept(tile: Tile, logits: np.ndarray, k: int, given_ids: np.ndarray) -> None:
    """Each row of a tile is the union of its k best and its given ids, as float64 says."""
    table, place = dense(logits), 0
    for row, count in enumerate(tile.counts):
        part, place = slice(place, place + count), place + count
        best = np.argsort(-table[row], kind="stable")[:k]
        union = set(best.tolist()) | (set(given_ids[row].tolist()) - {-1})
        union = {v for v in union if table[row, v] > -np.inf}
        assert set(tile.ids[part].tolist()) == union and count == len(union)
        np.testing.assert_allclose(tile.logprobs[part], table[row, tile.ids[part]], atol=2e-5)
        assert (np.diff(tile.logprobs[part]) <= 0).all()
        want = log_sum(np.delete(table[row], sorted(union)))
        np.testing.assert_allclose(tile.scalars[0, row], want, atol=1e-3, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(tables(), st.integers(1, 30))
def test_given_ids_are_entries_and_no_part_of_the_tail(
    case: tuple[np.ndarray, Selection, np.ndarray], width: int
) -> None:
    logits, selection, next_ids = case
    vocab = selection.vocab_size
    given_ids = np.random.default_rng(width).integers(-1, vocab, (len(logits), width))
    selection = keep(selection.k, vocab)
    tensors = (torch.from_numpy(array) for array in (logits, next_ids))
    tile = select(*tensors, selection, None, torch.from_numpy(given_ids))
    assert_given_are_kept(tile, logits, selection.k, given_ids)
    alone = run(logits, selection, next_ids)
    assert tile.scalars[1:].tobytes() == alone.scalars[1:].tobytes()


def test_the_tail_beside_given_ids_is_right_in_log_space() -> None:
    """What is left is 1e-26 of the mass: the head and the faint given ids are all the rest."""
    logits = np.random.default_rng(0).normal(0, 1, (4, 300)).astype(np.float32)
    logits[:, 7] = 90.0
    logits[:, 200:210] += 30.0
    given_ids = np.tile(np.arange(200, 210), (4, 1))
    next_ids = torch.zeros(4, dtype=torch.int64)
    tile = select(
        torch.from_numpy(logits), next_ids, keep(1, 300), None, torch.from_numpy(given_ids)
    )
    assert tile.counts.tolist() == [11] * 4
    assert_given_are_kept(tile, logits, 1, given_ids)


def test_given_ids_that_complete_the_vocabulary_leave_no_tail() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, 70)).astype(np.float32)
    given_ids = torch.arange(70).expand(3, -1)
    tile = select(
        torch.from_numpy(logits), torch.zeros(3, dtype=torch.int64), keep(5, 70), None, given_ids
    )
    assert tile.counts.tolist() == [70] * 3 and (tile.scalars[0] == -np.inf).all()


def test_a_nan_beside_given_ids_is_refused() -> None:
    logits = np.zeros((2, 9), dtype=np.float32)
    logits[1] = np.nan
    given_ids = torch.tensor([[1, 2], [3, 4]])
    tile = select(
        torch.from_numpy(logits), torch.zeros(2, dtype=torch.int64), keep(4, 9), None, given_ids
    )
    assert tile.bad.tolist() == [False, True] and tile.counts[1] == 0
    with pytest.raises(BadTargets, match="in 1 of 2 rows"):
        assemble([tile], [np.ones(2, bool)], keep(4, 9))
