"""Killed at random moments and continued, a run ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Family

KILLS = 4
# A process that has imported everything once, and forks a run each time. A kill comes soon after
# the folder of a random checkpoint appears: there is one a step, and many kills fall into saves.
SCRIPT = """
import json, os, random, signal, sys, time
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainingArguments
import cachekd.training.trainer, cachekd.training.collate, cachekd.training.run
import transformers.trainer_callback, weighing
from cachekd_cli.main import main

def run(flags, out, last):
    child = os.fork()
    if child == 0:
        log = os.open(out + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["cachekd", "train", "--output-dir", out, *flags]
        try:
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while last is not None and not os.path.exists(f"{out}/checkpoint-{last}"):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    if last is not None:
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

flags, root, kills, seed = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
chance = random.Random(seed)
codes, last = [run(flags, root + "/whole", None)], 0
resume = ["--resume-from-checkpoint", "true"]
for _ in range(kills):
    last += chance.randint(2, 5)
    codes.append(run(flags + resume, root + "/parts", last))
codes.append(run(flags + resume, root + "/parts", None))
print(json.dumps(codes))
"""


def _killed(family: Family, cache: Path, root: Path, seed: int, *further: object) -> list[int]:
    """Exit codes: of the whole run, of the killed ones (-9), of the last."""
    flags = [
        "--cache",
        f"main={cache}",
        "--student",
        family.student,
        "--max-steps",
        24,
        "--use-cpu",
        "true",
    ]
    flags += ["--save-steps", 1, "--save-total-limit", 3, "--learning-rate", 0.01]
    flags += ["--per-device-train-batch-size", 2, "--logging-steps", 5, *further]
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    text = json.dumps([str(flag) for flag in flags])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, text, str(root), str(KILLS), str(seed)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    codes: list[int] = json.loads(done.stdout)
    return codes


# The name of a teacher's folder is put in by the test.
_LIVE = ("--teacher", "TEACHER", "--max-new-tokens", 6, "--logits-top-k", 8)


def _state(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for part in names for name, value in load_file(folder / part).items()}


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("padded", ()),
        ("packed", ("--packing",)),
        ("mixed", ("--packing", "--mix", "main=0.3")),
        ("accumulated", ("--gradient-accumulation-steps", 3)),
        ("learned", ("--objective", "weighing:Weighing")),
        ("lora", ("--lora-r", 2)),
        ("distillm", (*_LIVE, "--objective", "distillm", "--lmbda", 0.8, "--replay", 6)),
        ("minillm", (*_LIVE, "--objective", "minillm", "--collect", 8, "--inner-epochs", 2)),
        ("multi", (*_LIVE, "--objective", "multi_granularity", "--chunker", "adjacent")),
    ],
)
def test_killed_run_ends_with_the_same_weights(
    family: Family, made: Any, tmp_path: Path, kind: str, further: tuple[object, ...]
) -> None:
    further = tuple(family.teacher if flag == "TEACHER" else flag for flag in further)
    codes = _killed(family, made.cache, tmp_path, len(kind), *further)
    log = (tmp_path / "parts.log").read_text()[-3000:]
    assert codes[0] == codes[-1] == 0, log
    assert codes[1:-1] == [-9] * KILLS, log
    names = {"lora": ("adapter_model.safetensors",)}.get(kind, ("model.safetensors",))
    names += ("objective.safetensors",) * (kind in ("learned", "multi"))
    whole, parts = _state(tmp_path / "whole", *names), _state(tmp_path / "parts", *names)
    assert whole.keys() == parts.keys() and len(whole) > 3
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    left, right = (
        [
            row
            for row in json.loads((tmp_path / at / "run.json").read_text())["history"]
            if "loss" in row
        ]
        for at in ("whole", "parts")
    )
    assert [row["step"] for row in left] == [row["step"] for row in right] == [5, 10, 15, 20]
