"""Attention from the command line: what is printed, kept, shown and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran

Run = Callable[..., Ran]


@pytest.fixture
def precompute(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> Callable[..., Ran]:
    def run(*flags: object) -> Ran:
        base = ["--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache"]
        return cachekd("precompute", *base, "--backend", "dummy", "--logits-top-k", 4, *flags)

    return run


def test_the_choice_is_printed_before_the_run_and_shown_after(
    precompute: Callable[..., Ran], cachekd: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--attention", "auto", "--attention-budget", 60)
    dry = precompute(*flags, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    told = dry.json["attention_targets"]
    assert f"a budget of 60 bytes a token gives {told}" in caplog.text
    assert dry.json["attention_bytes_per_token_estimated"] <= 60
    assert not (tmp_path / "cache").exists()
    done = precompute(*flags, "--json")
    assert done.json["attention_targets"] == told
    shown = cachekd("inspect", tmp_path / "cache", "--json").json
    assert shown["attention_targets"]["kind"] in told
    assert shown["attention_bytes"] == done.json["attention_bytes"] > 0
    assert cachekd("inspect", tmp_path / "cache").code == 0
    assert cachekd("inspect", tmp_path / "cache", "--record", 0, "--json").json["attention_rows"]
    assert cachekd("verify", tmp_path / "cache").code == 0
    card = (tmp_path / "cache/README.md").read_text()
    assert "| Attention | maps, sqrt step 0.01587 |" in card


def test_flags_and_yaml_mean_the_same(precompute: Callable[..., Ran], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "attention": "maps",
        "attention_layers": [1],
        "attention_heads": "0",
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    from_yaml = precompute("--config", tmp_path / "run.yaml", "--dry-run", "--json").json
    flags = ("--attention", "maps", "--attention-layers", "1", "--attention-heads", "0")
    from_flags = precompute(*flags, "--dry-run", "--json").json
    assert from_yaml["attention_targets"] == from_flags["attention_targets"]
    assert "maps of layers 1, heads 0, all rows" in from_flags["attention_targets"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--attention", "maps", "--attn-implementation", "sdpa"), 2, "would store nothing"),
        (("--attention", "auto"), 2, "auto needs one"),
        (("--attention", "auto", "--attention-budget", 1), 2, "are not enough"),
        (("--attention", "maps", "--attention-layers", "2"), 2, "layers 0 to 1"),
        (("--attention", "qk", "--attention-heads", "mean"), 2, "needs attention maps"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    precompute: Callable[..., Ran],
    tmp_path: Path,
    flags: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    ran = precompute(*flags)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "cache").exists()


def test_attention_added_to_a_cache_of_logits_is_refused(precompute: Callable[..., Ran]) -> None:
    assert precompute().code == 0
    ran = precompute("--attention", "maps")
    assert ran.code == 5
    assert "holds logits alone" in ran.err and "use a new" in ran.err
