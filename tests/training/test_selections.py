"""Every selection and rounding from a real capture through merge and recode to trained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import capture, train, weights
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.errors import ConfigError
from cachekd.store.recode import recode
from cachekd.store.verify import verify

KINDS = {
    "levels": {"logits_values": "sqrt", "logits_top_k": 256, "logits_top_p": 1.0},
    "nats": {"logits_values": "log", "logits_step": 0.25, "logits_selection": "top_k"},
    "head and draws": {"logits_selection": "top_k+sampled", "logits_tau": 0.05},
    "draws": {"logits_selection": "sampled", "logits_samples": 30},
    "full": {"logits_selection": "full"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "data.jsonl", chat_rows(24))


@pytest.mark.parametrize("kind", KINDS)
def test_from_capture_to_a_student(kind: str, family: Family, data: Path, tmp_path: Path) -> None:
    capture(family, data, tmp_path / "cache", **{"logits_values": "float16", **KINDS[kind]})
    assert not verify(str(tmp_path / "cache")).problems
    recode([str(tmp_path / "cache")], str(tmp_path / "again"))
    assert not verify(str(tmp_path / "again")).problems
    for left, right in zip(
        cachekd.open_cache(str(tmp_path / "cache")),
        cachekd.open_cache(str(tmp_path / "again")),
        strict=True,
    ):
        assert (left.logits.weights is None) == (kind not in ("head and draws", "draws"))
        assert left.logits.tail.tobytes() == right.logits.tail.tobytes()
        rows = [
            np.repeat(np.arange(x.logits.rows), np.diff(x.logits.offsets)) for x in (left, right)
        ]
        a, b = (
            sorted(zip(r.tolist(), x.logits.ids.tolist(), x.logits.logprobs.tolist(), strict=True))
            for r, x in zip(rows, (left, right), strict=True)
        )
        assert a == b
    train(family, (tmp_path / "again",), tmp_path / "out", objective_options={"loss": {"kd": 1.0}})
    before = weights(family.student)
    moved = [(after - before[k]).abs().max() for k, after in weights(tmp_path / "out").items()]
    assert torch.stack(moved).max() > 1e-3 and torch.isfinite(torch.stack(moved)).all()


@pytest.mark.parametrize("tail", ["flat", "unigram", "log_rank"])
def test_a_tail_model_trains_from_a_cache_with_a_prior(
    tail: str, family: Family, data: Path, tmp_path: Path
) -> None:
    capture(family, data, tmp_path / "cache", logits_top_k=8)
    bucket = train(family, (tmp_path / "cache",), tmp_path / "bucket")
    other = train(
        family, (tmp_path / "cache",), tmp_path / "tail", objective_options={"tail": tail}
    )
    gap = [(weights(bucket)[k] - v).abs().max() for k, v in weights(other).items()]
    assert torch.stack(gap).max() > 1e-5, "the model of the tail must matter"


def test_what_draws_cannot_serve_is_refused(family: Family, data: Path, tmp_path: Path) -> None:
    capture(family, data, tmp_path / "cache", **KINDS["draws"])
    for options in ({"temperature": 2.0}, {"tail": "flat"}):
        with pytest.raises(ConfigError, match="nothing else has an unbiased"):
            train(family, (tmp_path / "cache",), tmp_path / "out", objective_options=options)
    assert not (tmp_path / "out").exists()


def test_a_threshold_that_leaves_tokens_out_is_refused(family: Family, data: Path) -> None:
    for further in (
        {"logits_top_k": 10, "logits_tau": 0.05},
        {"logits_values": "sqrt", "logits_step": 0.5, "logits_tau": 0.05},
    ):
        with pytest.raises(ConfigError, match="logits_tau"):
            capture(family, data, Path("cache"), logits_selection="top_k+sampled", **further)
