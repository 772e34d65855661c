"""The two commands on real data with real tiny teachers: what caching costs and what it buys.

For each data set: ``precompute`` of training and held-out text, ``verify``, then ``train`` of one
student from the cache and of the same student on the text alone (cross entropy), with the same
steps and order, over seeds. Reported: entries and bytes per target, and held-out KL to the teacher
and cross entropy of both students. Everything runs through the command line, as a user would.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import median, save


@dataclass(frozen=True)
class Task:
    """A data set with its teacher and student."""

    teacher: str
    student: str | None
    train: str
    heldout: str
    samples: int
    batch: int = 8
    learning_rate: float = 1e-3


TASKS = {
    "e-commerce": Task(
        "tiny-teacher/ecom",
        "tiny-student/init",
        "ecommerce-cucom/train.jsonl",
        "ecommerce-cucom/test.jsonl",
        1200,
    ),
    "dolly": Task(
        "tiny-teacher/sft",
        "tiny-student/init",
        "dolly-subset/dolly_train.jsonl",
        "minillm-eval/dolly_test_500.jsonl",
        600,
    ),
    "selfinst": Task(
        "tiny-teacher/sft",
        "tiny-student/init",
        "selfinst-252/seed_tasks.jsonl",
        "minillm-eval/selfinst_242.jsonl",
        175,
    ),
    "tinystories": Task(
        "stories260k-hf",
        None,
        "tinystories-1k/train.jsonl",
        "tinystories-1k/test.jsonl",
        900,
        learning_rate=3e-3,
    ),
}


def cachekd(*args: object) -> dict[str, Any]:
    """A command of cachekd in a process of its own, with its JSON result."""
    command = [sys.executable, "-m", "cachekd_cli", *map(str, args), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fresh_student(teacher: Path, folder: Path, seed: int) -> Path:
    """A student of half the teacher's depth with random weights and the teacher's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(teacher)
    config.num_hidden_layers = max(1, config.num_hidden_layers // 2)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def train(
    task: Task, student: Path, caches: dict[str, Path], out: Path, seed: int, steps: int, loss: str
) -> dict[str, float]:
    """Final held-out figures of one student."""
    report = cachekd(
        *("train", "--cache", caches["train"], "--eval-cache", caches["heldout"]),
        *("--student", student, "--output-dir", out, "--loss", loss, "--seed", seed),
        *("--max-steps", steps, "--per-device-train-batch-size", task.batch),
        *("--learning-rate", task.learning_rate, "--lr-scheduler-type", "cosine"),
        *("--warmup-steps", steps // 10, "--use-cpu", "true", "--save-strategy", "no"),
        *("--logging-steps", max(1, steps // 10)),
    )
    return {
        "kl": report["final_eval"]["eval_kl"],
        "ce": report["final_eval"]["eval_ce"],
        "tail_mass": report["final_eval"]["eval_tail_mass"],
    }


def run(task: Task, root: Path, work: Path, seeds: list[int], steps: int) -> dict[str, Any]:
    """All of one data set."""
    caches, captured = capture(task, root, work)
    students: dict[str, list[dict[str, float]]] = {"distilled": [], "text_alone": []}
    for seed in seeds:
        student = (
            root / task.student
            if task.student
            else fresh_student(root / task.teacher, work / f"student-{seed}", seed)
        )
        for name, loss in (("distilled", "ce=0.1,kd=0.9"), ("text_alone", "ce=1,kd=0")):
            out = work / f"{name}-{seed}"
            students[name].append(train(task, student, caches, out, seed, steps, loss))
    told = captured["train"]
    pairs = list(zip(students["distilled"], students["text_alone"], strict=True))
    return {
        "teacher": task.teacher,
        "student": task.student or "half the teacher's layers, random",
        "samples": told["samples"],
        "tokens": told["sample_tokens"],
        "skipped": told["skipped"],
        "changed": told["changed"],
        "entries_per_target": round(told["entries"] / told["targets"], 2),
        "bytes_per_target": round(told["bytes"] / told["targets"], 1),
        "heldout_targets": captured["heldout"]["targets"],
        "steps": steps,
        "seeds": seeds,
        "heldout": {name: summary(results) for name, results in students.items()},
        "kl_ratio_distilled_over_text": median([a["kl"] / b["kl"] for a, b in pairs]),
        "distilled_is_closer_for_every_seed": all(a["kl"] < b["kl"] for a, b in pairs),
    }


def capture(task: Task, root: Path, work: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Verified caches of training and held-out text, and what their captures told."""
    caches, captured = {}, {}
    for name, data, samples in (
        ("train", task.train, task.samples),
        ("heldout", task.heldout, min(task.samples, 150)),
    ):
        caches[name] = work / name
        captured[name] = cachekd(
            *("precompute", "--teacher", root / task.teacher, "--data", root / data),
            *("--cache", caches[name], "--max-samples", samples),
            *("--on-long", "split", "--on-bad", "skip"),
        )
        assert not cachekd("verify", caches[name])["problems"]
    return caches, captured


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Mean, deviation and values over seeds of each figure."""
    figures = {}
    for key in results[0]:
        values = [one[key] for one in results]
        figures[key] = {
            "mean": round(mean(values), 4),
            "std": round(stdev(values), 4) if len(values) > 1 else None,
            "values": [round(value, 4) for value in values],
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    results = {}
    for name in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = run(TASKS[name], args.data_root, Path(folder), args.seeds, args.steps)
            print(json.dumps({name: results[name]["heldout"]}), file=sys.stderr, flush=True)
    save("real_data", {"tasks": results})


if __name__ == "__main__":
    main()
