"""Sharded students (FSDP2): the curve, the weights and the order of one process, also resumed.

In float32 on CPUs: figures of a step within 2e-5, weights within 5e-6 after ten steps of Adam.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import capture
from safetensors.torch import load_file
from tiny import Family, chat_rows, write_rows
from together import together

SAMPLES = 17  # of batches of 4: the last one of an epoch has a single sample
SHARDED = ("--fsdp", "true", "--fsdp-config", "fsdp.json")
FIGURES = ("loss", "kl", "ce", "tail_mass", "grad_norm", "eval_loss", "eval_kl", "attention")


@dataclass(frozen=True)
class Bed:
    """Caches of a teacher, and where runs are kept."""

    root: Path
    family: Family

    def run(
        self, name: str, processes: int, *flags: object, code: int = 0, **environment: str
    ) -> Path:
        """A run of ten steps, saved at the fourth; whatever the processes, 4 samples a step."""
        out = self.root / name
        given = {
            "--cache": self.root / "cache",
            "--eval-cache": self.root / "held-out",
            "--student": self.family.student,
            "--output-dir": out,
            "--per-device-train-batch-size": 4 // processes,
            "--per-device-eval-batch-size": 2,
            "--num-train-epochs": 2,
            "--logging-steps": 1,
            "--save-strategy": "steps",
            "--save-steps": 4,
            "--eval-strategy": "steps",
            "--eval-steps": 5,
            "--learning-rate": 1e-3,
            "--use-cpu": "true",
        }
        settings = [part for pair in given.items() for part in pair]
        where = self.root / f"{name}-seen"
        shutil.rmtree(where, ignore_errors=True)
        (self.root / "fsdp.json").write_text('{"state_dict_type": "FULL_STATE_DICT"}')
        flags = tuple(self.root / one if one == "fsdp.json" else one for one in flags)
        ended = together(
            processes, where, "train", *settings, *flags, before=_noting(where), **environment
        )
        assert [one.code for one in ended] == [code] * processes, ended[0].err[-3000:]
        return out

    def resumed(self, name: str, of: Path, processes: int, *flags: object, **more: Any) -> Path:
        """A run that goes on from the fourth step of another."""
        later = shutil.ignore_patterns("checkpoint-8", "checkpoint-10", "*.safetensors")
        shutil.copytree(of, self.root / name, ignore=later)
        shutil.copytree(of / "checkpoint-4", self.root / name / "checkpoint-4", dirs_exist_ok=True)
        checkpoint = self.root / name / "checkpoint-4"
        return self.run(name, processes, "--resume-from-checkpoint", checkpoint, *flags, **more)

    def seen(self, run: Path) -> Counter[int]:
        """How often each sample was read to be trained on, by any process."""
        files = (self.root / f"{run.name}-seen").glob("seen-*")
        return Counter(int(line) for path in files for line in path.read_text().split())


def _noting(folder: Path) -> Callable[[], None]:
    """Makes a process write down the samples that it trains on."""

    def note() -> None:
        import os

        from cachekd.training.loader import CacheDataset
        from cachekd.training.order import Filler

        read = CacheDataset.records
        path = folder / f"seen-{os.environ.get('RANK', 0)}"

        def noted(self: Any, indices: Any) -> Any:
            if len(self) == SAMPLES:
                with path.open("a") as lines:
                    lines.writelines(f"{i}\n" for i in indices if not isinstance(i, Filler))
            return read(self, indices)

        CacheDataset.records = noted  # type: ignore[method-assign]

    return note


@pytest.fixture(scope="module")
def bed(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    root = tmp_path_factory.mktemp("fsdp")
    data = write_rows(root / "data.jsonl", chat_rows(SAMPLES))
    held_out = write_rows(root / "held-out.jsonl", chat_rows(5, 70))
    attention = {"attention": "maps"}
    capture(family, data, root / "cache", **attention)
    capture(family, held_out, root / "held-out", **attention)
    return Bed(root, family)


@pytest.fixture(scope="module")
def one(bed: Bed) -> Path:
    """The run of one process, which all others must equal."""
    return bed.run("one", 1)


def _curve(run: Path, after: int = 0) -> dict[tuple[int, str], float]:
    """Figures by step."""
    rows = json.loads((run / "run.json").read_text())["history"]
    return {
        (row["step"], name): row[name]
        for row in rows
        for name in FIGURES
        if name in row and row["step"] > after
    }


def _weights(run: Path) -> dict[str, torch.Tensor]:
    files = [*run.glob("*model.safetensors"), *run.glob("objective.safetensors")]
    return {f"{path.name} {k}": v for path in files for k, v in load_file(path).items()}


def _assert_same(found: Path, expected: Path, after: int = 0) -> None:
    left, right = _curve(found, after), _curve(expected, after)
    assert len(right) > 20
    assert left == pytest.approx(right, abs=2e-5)
    weights = _weights(found)
    assert weights.keys() == _weights(expected).keys()
    for name, value in _weights(expected).items():
        torch.testing.assert_close(weights[name], value, atol=5e-6, rtol=1e-5)


@pytest.mark.slow
def test_sharded_and_replicated_students_train_as_one(bed: Bed, one: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert bed.seen(one) == Counter({i: 2 for i in range(SAMPLES)})
    for name, flags in (("replicated", ()), ("sharded", SHARDED)):
        run = bed.run(name, 2, *flags)
        _assert_same(run, one)
        assert bed.seen(run) == bed.seen(one)
    loaded = AutoModelForCausalLM.from_pretrained(run).state_dict()
    assert not any(part.is_dir() and part.name != "checkpoint-4" for part in run.glob("*model*"))
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(loaded[name], value) and value.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("one", 2), ("sharded", 1), ("replicated", 1)])
def test_another_number_of_processes_goes_on(bed: Bed, one: Path, first: str, then: int) -> None:
    begun = bed.root / first
    if not begun.exists():
        begun = bed.run(first, 2, *(SHARDED if first == "sharded" else ()))
    run = bed.resumed(f"{first}-{then}", begun, then, *(SHARDED if then == 2 else ()))
    _assert_same(run, one, after=4)
    assert bed.seen(run).total() == 2 * SAMPLES - 16
    assert bed.seen(run) == bed.seen(one) - _first_steps(bed, one)


def _first_steps(bed: Bed, one: Path) -> Counter[int]:
    """Samples of the first four steps."""
    lines = (bed.root / f"{one.name}-seen" / "seen-0").read_text().split()
    return Counter(int(line) for line in lines[:16])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lora", ("--lora-r", 4, "--lora-dropout", 0)),
        ("head", ("--lora-r", 4, "--lora-dropout", 0, "--lora-modules-to-save", "lm_head")),
        ("dac", ("--objective", "dac_kl", "--objective-learning-rate", 0.05)),
        ("attention", ("--loss", "kd=1,attention=1")),
        ("packed", ("--packing", "--max-length", 64, "--loss", "ce=0.5,kd=0.5")),
    ],
)
def test_adapters_learned_parameters_attention_and_packing(
    bed: Bed, name: str, flags: tuple[object, ...]
) -> None:
    one = bed.run(f"one-{name}", 1, *flags)
    two = bed.run(f"two-{name}", 2, *SHARDED, *flags)
    _assert_same(two, one)
    if name in ("lora", "dac"):
        _assert_same(bed.resumed(f"on-{name}", two, 1, *flags), one, after=4)
        _assert_same(bed.resumed(f"back-{name}", one, 2, *SHARDED, *flags), one, after=4)


@pytest.mark.slow
def test_checkpoints_in_shards_and_what_the_launcher_says(bed: Bed, one: Path) -> None:
    """What accelerate's own file sets, in place of flags."""
    launched = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    run = bed.run("in-shards", 2, **launched)
    _assert_same(run, one)
    assert (run / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()
    assert not list(run.glob("*fsdp*"))
    _assert_same(bed.resumed("in-shards-on", run, 2, **launched), one, after=4)
    bed.resumed("in-shards-alone", run, 1, code=2)
    said = (bed.root / "in-shards-alone-seen" / "rank-0" / "err").read_text()
    assert "written shard by shard" in said and "Traceback" not in said
