"""Windows of extreme entropy, and the text of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import Family
from tokenizers import Tokenizer

from cachekd.overview.passages import KEPT, Extremes
from cachekd.overview.tokens import pieces
from cachekd.types import Record, TopKLogits


def _record(entropy: list[float], ids: list[int] | None = None, uncaptured: int = 0) -> Record:
    """One entry a row, none in the first rows that were not captured."""
    rows = len(entropy)
    counts = np.array([0] * uncaptured + [1] * (rows - uncaptured))
    scalars = np.array(entropy, np.float32)
    logits = TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        ids=np.zeros(counts.sum(), np.int32),
        logprobs=np.zeros(counts.sum(), np.float32),
        weights=None,
        tail=np.full(rows, -1, np.float32),
        next_logprob=-scalars,
        lognorm={},
        entropy=scalars,
        vocab_size=1000,
    )
    tokens = np.array(ids if ids is not None else range(rows + 1), np.int32)
    return Record(
        key=tokens.tobytes(),
        sample_id=b"",
        input_ids=tokens,
        roles=np.zeros(rows + 1, np.uint8),
        prompt_length=None,
        domain="",
        weight=1.0,
        logits=logits,
    )


def _held(*records: Record, lowest: bool = False) -> Extremes:
    extremes = Extremes(lowest=lowest)
    for number, record in enumerate(records):
        extremes.add(number, record, np.diff(record.logits.offsets) > 0)
    return extremes


def test_the_window_is_where_the_mean_is_extreme() -> None:
    entropy = [1.0] * 200
    entropy[100:148] = [3.0] * 48
    (window,) = _held(_record(entropy)).windows()
    assert window.mean_entropy == 3.0
    # Eight tokens of context, then those that rows 100 to 147 predict.
    assert window.ids.tolist() == list(range(93, 149))
    assert np.isnan(window.entropy[:8]).all() and (window.entropy[8:] == 3.0).all()


def test_rows_without_targets_do_not_count() -> None:
    record = _record([9.0] * 40 + [1.0] * 30, uncaptured=40)
    (window,) = _held(record).windows()
    assert window.mean_entropy == 1.0
    assert not _held(_record([1.0] * 20, uncaptured=15)).windows(), "five rows are too few"


def test_the_extreme_ones_are_kept_in_their_order() -> None:
    records = [
        _record([float(level)] * 20, list(range(i, i + 21)))
        for i, level in enumerate([3, 1, 4, 1.5, 9, 2, 6])
    ]
    assert [w.mean_entropy for w in _held(*records).windows()] == [9, 6, 4]
    assert [w.mean_entropy for w in _held(*records, lowest=True).windows()] == [1, 1.5, 2]
    assert KEPT == 3


def test_the_same_text_is_shown_once() -> None:
    """Turns of one conversation: the longer document begins with the shorter one."""
    turn = [5.0] * 48
    first, second = _record(turn), _record([*turn, 1.0, 1.0])
    assert len(_held(first, second).windows()) == 1
    assert [w.number for w in _held(second, second, first).windows()] == [0]
    stronger = _record([*(5.5 for _ in turn), 1.0])
    assert [w.mean_entropy for w in _held(first, stronger).windows()] == [5.5]


@pytest.fixture(scope="module")
def tokenizer(family: Family) -> Tokenizer:
    return Tokenizer.from_file(str(Path(family.teacher) / "tokenizer.json"))


@pytest.mark.parametrize("text", ["the red dog", "naïve שלום 👩\u200d🚀", " \n\t  x", "a\ufffdb"])
def test_pieces_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    own = [piece for piece, token in zip(found, ids, strict=True) if piece != f"⟨{token}⟩"]
    assert "".join(own) == text


def test_a_character_of_several_tokens_is_shown_by_its_last(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("字").ids
    assert len(ids) == 3
    assert pieces(tokenizer, ids) == (f"⟨{ids[0]}⟩", f"⟨{ids[1]}⟩", "字")
    assert pieces(tokenizer, ids[:2]) == (f"⟨{ids[0]}⟩", f"⟨{ids[1]}⟩")


def test_without_a_tokenizer_tokens_are_their_ids() -> None:
    assert pieces(None, [3, 14]) == ("3 ", "14 ")
