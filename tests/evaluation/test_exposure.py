"""ExAccErr against a dense loop over the definition with alive responses, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from cachekd.evaluation.exposure import curve_of, exposure
from cachekd.evaluation.scores import Side
from cachekd.evaluation.texts import Run
from cachekd.rollouts import Written
from cachekd.types import Int32

Dense = Callable[[Side, Int32], Tensor]
PROMPTS = (4, 7, 1)
RESPONSES = {"student": [(3, 6, 1), (5, 5, 2)], "teacher": [(6, 2, 4), (4, 4, 4)]}


def written(lengths: tuple[int, ...], vocab: int, seed: int) -> Run:
    generator = np.random.default_rng(seed)
    texts = [
        Written(
            response=generator.integers(0, vocab, length).astype(np.int32),
            logprob=np.zeros(length, np.float32),
            ended=False,
        )
        for length in lengths
    ]
    return Run(seed=seed, written=tuple(texts))


@pytest.fixture(scope="module")
def prompts(student: Side) -> list[Int32]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, student.vocab_size, n).astype(np.int32) for n in PROMPTS]


def test_it_is_the_dense_loop_over_alive_responses(
    student: Side, teacher: Side, prompts: list[Int32], dense: Dense
) -> None:
    vocab = student.vocab_size
    runs = {
        name: [written(lengths, vocab, 10 * i + j) for j, lengths in enumerate(some)]
        for i, (name, some) in enumerate(RESPONSES.items())
    }
    lengths = (1, 2, 4, 6)
    figures, curves = exposure(
        student, teacher, prompts, (runs["student"], runs["teacher"]), lengths, 64, lambda *_: None
    )

    def error(run: Run, length: int) -> float | None:
        total = 0.0
        for t in range(length):
            values = []
            for prompt, text in zip(prompts, run.written, strict=True):
                if len(text.response) > t:
                    ids = np.concatenate([prompt, text.response])
                    row = len(prompt) - 1 + t
                    p, q = dense(teacher, ids)[row], dense(student, ids)[row]
                    values.append(float((p.exp() * (p - q)).sum()))
            if not values:
                return None
            total += sum(values) / len(values)
        return total

    for length in lengths:
        figure = figures[f"exaccerr_{length}"]
        for seed in range(2):
            r, e = (error(runs[name][seed], length) for name in ("student", "teacher"))
            told = [figure["parts"][name][seed] for name in ("student", "teacher")]
            assert [value is None for value in told] == [r is None, e is None]
            if r is None or e is None:
                assert figure["values"][seed] is None
            else:
                assert told == pytest.approx([r, e], rel=1e-4)
                assert figure["values"][seed] == pytest.approx(
                    100 * (r - e) / e, rel=1e-3, abs=1e-3
                )
    assert figures["exaccerr_6"]["mean"] is None
    assert "no response of the model or the teacher has 6" in (figures["exaccerr_6"]["why"] or "")
    assert "(1 of 2 seeds have it)" in (figures["exaccerr_6"]["why"] or "")
    assert figures["exaccerr_1"]["mean"] == pytest.approx(0, abs=1e-3), "one context, one error"
    assert figures["exaccerr_4"]["parts"]["alive_student"] == [1 / 3, 2 / 3]
    assert figures["exaccerr_4"]["parts"]["alive_teacher"] == [2 / 3, 1.0]
    assert curves["student"]["alive"] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 3 / 6, 1 / 6])


def test_a_response_that_is_over_neither_adds_nor_lowers() -> None:
    curve = curve_of([np.array([1.0, 2.0, 4.0]), np.array([3.0])])
    assert curve.accumulated().tolist() == [2.0, 4.0, 8.0]
    assert [curve.share_alive(n) for n in (1, 2, 3, 4)] == [1.0, 0.5, 0.5, 0.0]
    assert curve.error(3) == 8.0 and curve.error(4) is None


def test_a_teacher_has_no_error_of_its_own(teacher: Side, prompts: list[Int32]) -> None:
    run = written((3, 3, 3), teacher.vocab_size, 0)
    figures, _ = exposure(teacher, teacher, prompts, ([run], [run]), (2,), 64, lambda *_: None)
    figure = figures["exaccerr_2"]
    assert figure["mean"] is None and figure["parts"]["teacher"] == [0.0]
    assert "the error in the teacher's own contexts is 0" in (figure["why"] or "")
