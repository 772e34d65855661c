"""Objectives that choose among classes, from a real capture to trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import capture, train, weights
from tiny import Family

from cachekd.errors import ConfigError

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dac_kl": ({"logits_values": "sqrt", "logits_top_k": 64}, {"loss": {"kd": 1.0, "ce": 0.1}}),
    "clipping": ({"logits_values": "log", "logits_top_k": 64}, {"student_support": "tail"}),
    "dkd": ({"logits_values": "float16", "logits_top_k": 16}, {"temperature": 2.0}),
    "skd": ({"logits_values": "float16", "logits_top_k": 64}, {}),
    "dac_kl whole": ({"logits_selection": "full"}, {"space": "quantile"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_from_capture_to_a_student(case: str, family: Family, data: Path, tmp_path: Path) -> None:
    selection, options = CASES[case]
    capture(family, data, tmp_path / "cache", **selection)
    out = train(
        family,
        (tmp_path / "cache",),
        tmp_path / "out",
        objective=case.split()[0],
        objective_options=options,
    )
    before = weights(family.student)
    moved = [(after - before[name]).abs().max() for name, after in weights(out).items()]
    assert torch.stack(moved).max() > 1e-3 and torch.isfinite(torch.stack(moved)).all()


@pytest.mark.slow
def test_a_head_with_too_little_is_refused_at_the_start(
    family: Family, data: Path, tmp_path: Path
) -> None:
    capture(family, data, tmp_path / "cache", logits_top_p=0.9)
    for objective, options, message in (
        ("clipping", {"clip_p": 0.95}, r"--logits-top-p 0\.95 or more"),
        ("dac_kl", {"space": "quantile"}, "--logits-selection full"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(
                family,
                (tmp_path / "cache",),
                tmp_path / "out",
                objective=objective,
                objective_options=options,
            )
    assert not (tmp_path / "out").exists()
