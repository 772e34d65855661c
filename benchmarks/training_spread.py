"""A run of `cachekd.train` in forked processes that train together, and what it left.

In: a cache, a student, and how a run is spread. Out: its logged figures, its weights, and clocks of
every step. A step has the same samples however it is spread.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from forks import Child
from safetensors.torch import load_file

import cachekd
import cachekd.training.trainer  # once, not once a process
from cachekd import TrainConfig
from cachekd.training.meter import Meter

BATCH = 4
FIGURES = ("loss", "kl", "ce", "tail_mass")
LORA: dict[str, Any] = {"lora_r": 8, "lora_dropout": 0.0}
LIMIT_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Processes, FSDP2 or not, parts that a step is accumulated of, an adapter or not."""

    processes: int = 1
    sharded: bool = False
    parts: int = 1
    adapter: bool = False


WAYS = {
    "one": Way(),
    "accumulated": Way(parts=2),
    "ddp": Way(processes=2),
    "fsdp2": Way(processes=2, sharded=True),
    "one_lora": Way(adapter=True),
    "ddp_lora": Way(processes=2, adapter=True),
    "fsdp2_lora": Way(processes=2, sharded=True, adapter=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is trained, apart from how it is spread.

    Attributes:
        keep: a checkpoint is saved every so many steps; 0 for none.
        settings: of `cachekd.TrainConfig`.
    """

    cache: Path
    student: Path
    steps: int
    keep: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """When a batch was fetched: clock, processor time and tokens so far, of one process."""

    clock: float
    cpu: float
    tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run left.

    Attributes:
        rows: logged figures of each step, by step.
        weights: of the student or its adapter.
        learned: by the objective.
        marks: of each process, one for each of its batches.
    """

    rows: dict[int, dict[str, float]]
    weights: dict[str, torch.Tensor]
    learned: dict[str, torch.Tensor]
    marks: list[list[Mark]]


def trained(run: Run, way: Way, out: Path, checkpoint: Path | None = None) -> Trained:
    """Train, from the student or on from a checkpoint.

    Raises:
        RuntimeError: a process did not end well; says how each did.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = _settings(run, way, out, checkpoint)
    children = [Child(_process, rank, way, port, settings) for rank in range(way.processes)]
    ended = [child.wait(LIMIT_SECONDS) for child in children]
    if any(one.ending != "done" for one in ended):
        raise RuntimeError(f"{way}: expected runs that end; found {ended}")
    history = json.loads((out / "run.json").read_text())["history"]
    return Trained(
        rows={
            row["step"]: {name: row[name] for name in FIGURES if name in row}
            for row in history
            if "loss" in row
        },
        weights=_tensors(out, "*model.safetensors"),
        learned=_tensors(out, "objective.safetensors"),
        marks=[one.value for one in ended],
    )


def _tensors(folder: Path, pattern: str) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob(pattern) for name, value in load_file(path).items()}


def _settings(run: Run, way: Way, out: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Keywords of `TrainConfig`."""
    training: dict[str, Any] = {
        "max_steps": run.steps,
        "per_device_train_batch_size": BATCH // way.processes // way.parts,
        "gradient_accumulation_steps": way.parts,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "steps" if run.keep else "no",
        "save_steps": run.keep or 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
    }
    if way.sharded:
        training |= {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
    if checkpoint is not None:
        training["resume_from_checkpoint"] = str(checkpoint)
    places = {"cache": (str(run.cache),), "student": str(run.student), "output_dir": str(out)}
    adapter = LORA if way.adapter else {}
    return {**places, **adapter, **run.settings, "training": training}


def _process(rank: int, way: Way, port: int, settings: dict[str, Any]) -> list[Mark]:
    """One process of a run."""
    if way.processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(way.processes),
            "LOCAL_WORLD_SIZE": str(way.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    torch.set_num_threads(1)
    marks: list[Mark] = []
    count = Meter._count

    def counted(meter: Meter, batch: Any) -> None:
        count(meter, batch)
        clocks = {"clock": time.perf_counter(), "cpu": time.process_time()}
        marks.append(Mark(**clocks, tokens=float(meter.tokens)))

    Meter._count = counted  # type: ignore[method-assign]
    cachekd.train(TrainConfig(**settings))
    return marks
