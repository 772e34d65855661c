"""The score cache: a hit is what a miss was, nothing is scored twice, and faults leave no trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ragged import assert_same
from sick import SHORT, short_of_memory

from cachekd.errors import ConfigError, TeacherError
from cachekd.rollouts.blocks import ROWS, blocks_of
from cachekd.rollouts.scoring import CachedScores
from cachekd.rollouts.teacher import LiveTeacher
from cachekd.teachers import Selection
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.types import Int32, TopKLogits

VOCAB = 50
SELECTION = Selection(k=6, p=1.0, min_k=1, vocab_size=VOCAB, temperatures=(2.0,))


class Watched(DummyTeacher):
    """A dummy teacher that counts, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []
        self.room = 10**9
        self.bad: int | None = None

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[Any],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        if len(documents) * padded_length > self.room:
            raise MemoryError("no room")
        for place, ids_L in enumerate(documents):
            if ids_L[0] == self.bad:
                raise TeacherError(f"NaN or infinite logits in document {place}")
        self.calls.append([len(ids_L) for ids_L in documents])
        return super().score(documents, padded_length, selection, wanted, given)

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.calls))


def live(teacher: DummyTeacher, **changes: Any) -> LiveTeacher:
    own = LiveTeacher(
        teacher=teacher,
        source={"weights": "dummy"},
        scores_id="0" * 32,
        selection=SELECTION,
        context_length=200,
        model=None,
        facts={"source": {"weights": "dummy"}, "top_k": 6},
    )
    return replace(own, **changes)


def scores(folder: Path, teacher: DummyTeacher, batch_tokens: int = 200) -> CachedScores:
    return CachedScores(live(teacher), folder, batch_tokens)


def documents(count: int, seed: int = 0) -> list[Int32]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in rng.integers(3, 70, count)]


def given_of(documents: Sequence[Int32], first_rows: Sequence[int], width: int) -> list[Int32]:
    rng = np.random.default_rng(width)
    shapes = ((len(d) - 1 - f, width) for d, f in zip(documents, first_rows, strict=True))
    return [rng.integers(0, VOCAB, shape).astype(np.int32) for shape in shapes]


@pytest.mark.parametrize("width", [0, 3])
def test_hits_are_misses_and_both_are_the_teacher(tmp_path: Path, width: int) -> None:
    docs = documents(12)
    firsts = [int(n) for n in np.random.default_rng(1).integers(0, [len(d) - 1 for d in docs])]
    given = given_of(docs, firsts, width) if width else None
    teacher = Watched()
    cached = scores(tmp_path, teacher)
    missed = cached.score(docs, firsts, given)
    calls = len(teacher.calls)
    hit = cached.score(docs, firsts, given)
    cached.flush()
    other = scores(tmp_path, teacher).score(docs, firsts, given)
    assert len(teacher.calls) == calls, "neither a second call nor another run asks again"
    for place, ids_L in enumerate(docs):
        assert_same(missed[place], hit[place])
        assert_same(missed[place], other[place])
        wanted = [np.arange(len(ids_L) - 1) >= firsts[place]]
        own = None if given is None else [given[place]]
        (alone,) = DummyTeacher().score([ids_L], len(ids_L), SELECTION, wanted, own)
        assert_same(missed[place], alone)
        logits = dummy_logits(ids_L, VOCAB)[firsts[place] : -1].astype(np.float64)
        table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        next_logprob = table[np.arange(len(table)), ids_L[firsts[place] + 1 :]]
        np.testing.assert_allclose(
            missed[place].next_logprob[firsts[place] :], next_logprob, atol=1e-5
        )


def test_documents_that_begin_alike_share_what_was_scored(tmp_path: Path) -> None:
    """The second pass of SCRG: rows of whole blocks before the correction are not asked again."""
    teacher = Watched()
    cached = scores(tmp_path, teacher)
    first = np.random.default_rng(0).integers(0, VOCAB, 60).astype(np.int32)
    second = first.copy()
    second[40:] = (second[40:] + 1) % VOCAB
    cached.score([first], [5])
    found = cached.score([second], [5])[0]
    figures = cached.figures()
    assert figures["rows_cached"] == 2 * ROWS - 5
    assert figures["rows_scored"] == 59 + (59 - 2 * ROWS)
    (alone,) = DummyTeacher().score([second], 60, SELECTION, [np.arange(59) >= 5])
    assert_same(found, alone)


def test_what_is_wholly_held_costs_nothing(tmp_path: Path) -> None:
    docs = documents(6)
    teacher = Watched()
    cached = scores(tmp_path, teacher)
    cached.score(docs[:4], [0] * 4)
    before = teacher.tokens
    cached.score(docs, [0] * 6)
    assert teacher.tokens - before == len(docs[4]) + len(docs[5])
    figures = cached.figures()
    assert figures["teacher_tokens"] == teacher.tokens == sum(map(len, docs))
    assert figures["teacher_tokens_saved"] == sum(map(len, docs[:4]))
    assert figures["documents"] == 10 and figures["documents_scored"] == 6
    rows = [len(ids_L) - 1 for ids_L in docs]
    assert figures["rows"] == sum(rows) + sum(rows[:4])
    assert figures["hit_rate"] == pytest.approx(sum(rows[:4]) / figures["rows"], abs=1e-6)


def test_equal_documents_of_a_call_are_scored_once(tmp_path: Path) -> None:
    ids_L = documents(1)[0]
    teacher = Watched()
    found = scores(tmp_path, teacher).score([ids_L, ids_L.copy(), ids_L[:-1]], [0, 1, 0])
    # The shorter one ends within a block, whose key holds its length.
    assert teacher.tokens == 2 * len(ids_L) - 1
    assert np.array_equal(found[1].tail[1:], found[0].tail[1:])
    assert np.diff(found[1].offsets)[0] == 0


def test_batches_are_of_alike_lengths_within_the_budget(tmp_path: Path) -> None:
    teacher = Watched()
    scores(tmp_path, teacher, batch_tokens=100).score(documents(15), [0] * 15)
    assert len(teacher.calls) > 3
    for lengths in teacher.calls:
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= 100
    flat = [length for lengths in teacher.calls for length in lengths]
    assert flat == sorted(flat, reverse=True)


def test_a_batch_without_memory_is_halved(tmp_path: Path) -> None:
    docs, teacher = documents(9), Watched()
    whole = scores(tmp_path / "whole", Watched(), 10**6).score(docs, [0] * 9)
    teacher.room = 2 * max(map(len, docs))
    halved = scores(tmp_path / "halved", teacher, 10**6).score(docs, [0] * 9)
    assert max(map(len, teacher.calls)) == 2
    for left, right in zip(whole, halved, strict=True):
        assert_same(left, right)
    teacher.room = 2
    with pytest.raises(TeacherError, match=r"no memory for one document.*--teacher-dtype"):
        scores(tmp_path / "none", teacher).score(docs, [0] * 9)


@pytest.mark.parametrize("kind", SHORT)
def test_memory_that_is_short_now_and_then_changes_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    docs, tries = documents(40), list[tuple[int, bool]]()
    calm = scores(tmp_path / "calm", DummyTeacher()).score(docs, [0] * 40)
    shaky = short_of_memory(DummyTeacher.score, 0.2, 5, kind, tries)
    monkeypatch.setattr(DummyTeacher, "score", shaky)
    found = scores(tmp_path / "shaky", DummyTeacher()).score(docs, [0] * 40)
    assert any(failed for _, failed in tries)
    for left, right in zip(calm, found, strict=True):
        assert_same(left, right)


def test_nan_names_its_document_and_is_not_stored(tmp_path: Path) -> None:
    docs, teacher = documents(4), Watched()
    docs[2][0], teacher.bad = 49, 49
    for ids_L in (docs[0], docs[1], docs[3]):
        ids_L[0] = 1
    cached = scores(tmp_path, teacher, 10**6)
    first = ", ".join(map(str, docs[2][:3].tolist()))
    with pytest.raises(TeacherError, match=rf"token ids {first}.*Nothing of it was stored"):
        cached.score(docs, [0] * 4)
    assert len(cached._store) == 0
    teacher.bad = None
    assert len(cached.score(docs, [0] * 4)) == 4


def test_a_remote_teacher_that_fails_is_not_asked_again(tmp_path: Path) -> None:
    class Gone(DummyTeacher):
        asked = 0

        def score(self, *args: Any) -> list[TopKLogits]:
            Gone.asked += 1
            raise TeacherError("the server does not answer")

    cached = CachedScores(live(Gone(), remote=True), tmp_path, 10**6)
    with pytest.raises(TeacherError, match="does not answer"):
        cached.score(documents(4), [0] * 4)
    assert Gone.asked == 1


def test_what_no_teacher_can_score_is_refused(tmp_path: Path) -> None:
    cached = scores(tmp_path, Watched())
    with pytest.raises(ConfigError, match=r"201 tokens.*at most 200.*--max-new-tokens"):
        cached.score([np.zeros(201, np.int32)], [0])
    with pytest.raises(ConfigError, match="first row from 0 to 3; found 4"):
        cached.score([np.zeros(5, np.int32)], [4])


def test_a_resumed_run_finds_what_was_scored_after_its_checkpoint(tmp_path: Path) -> None:
    """A process that was killed wrote its scores before it used them."""
    docs = documents(8)
    first = scores(tmp_path, Watched())
    first.score(docs[:3], [0] * 3)
    state = first.state()
    wanted = first.score(docs[3:6], [0] * 3)  # and then it is killed, without a flush

    teacher = Watched()
    resumed = scores(tmp_path, teacher)
    resumed.restore(state)
    assert resumed.figures() == {**resumed.figures(), **_counted(state, resumed)}
    found = resumed.score(docs[3:6], [0] * 3)
    assert teacher.calls == []
    for one, other in zip(wanted, found, strict=True):
        assert one.logprobs.tobytes() == other.logprobs.tobytes()


def _counted(state: dict[str, Any], cached: CachedScores) -> dict[str, Any]:
    seconds = {f"seconds_{name}": round(value, 3) for name, value in state["seconds"].items()}
    return {**state["counts"], **seconds, "hit_rate": cached.figures()["hit_rate"]}


def test_a_key_holds_all_that_a_block_rests_on() -> None:
    ids_L = np.arange(40, dtype=np.int32)
    plain = [block.key for block in blocks_of(ids_L, 0, None)]
    assert len(set(plain)) == 3
    for place in range(40):
        other = ids_L.copy()
        other[place] += 1
        changed = [block.key for block in blocks_of(other, 0, None)]
        # The token at 16 j is the next token of the last row of block j - 1.
        first = max(0, -(-place // ROWS) - 1)
        assert [a == b for a, b in zip(plain, changed, strict=True)] == [
            block < first for block in range(3)
        ]
    given = np.arange(78, dtype=np.int32).reshape(39, 2)
    keys = [block.key for block in blocks_of(ids_L, 0, given)]
    assert not set(keys) & set(plain)
    assert keys == [block.key for block in blocks_of(ids_L, 0, given[:, ::-1].copy())]
    later = blocks_of(ids_L, 20, given[20:])
    assert [(block.start, block.stop) for block in later] == [(20, 32), (32, 39)]
    assert later[1].key == keys[2] and later[0].key not in keys
