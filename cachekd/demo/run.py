"""The demo: what distillation buys a small student, shown offline on a CPU in minutes.

In: a folder to write to. Out: in that folder the corpus, the teacher's cache, two trained students
that differ only in their loss, and a page with curves; and the figures of all that as a dict.
The steps are the public API as a user would call it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import cachekd
from cachekd.capture import Progress
from cachekd.config import PrecomputeConfig, TrainConfig
from cachekd.demo.corpus import write_corpus
from cachekd.demo.page import summary_rows, write_report
from cachekd.training.record import RECORD

__all__ = ["RUNS", "STEPS", "TEACHER", "run_demo", "summary_rows"]

TEACHER = Path(__file__).with_name("teacher")
STEPS = 400
BATCH = 8
EVALUATIONS = 10
CAPTURE_LINE_SECONDS = 3.0
RUNS: Mapping[str, Mapping[str, float]] = {
    "text only": {"ce": 1.0, "kd": 0.0},
    "distilled": {"ce": 0.1, "kd": 0.9},
}
"""Weights of the loss of each student; all else is equal."""


def run_demo(
    out: Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Distil a student from the shipped teacher, train its twin on text alone, and compare.

    Run again with the same folder, it uses the caches that are there and trains anew.

    Args:
        out: folder for everything that the demo writes; students of an earlier demo are replaced.
        steps: optimizer steps of each student.
        seed: of the students' weights and of the order of the text, the same for both.
        report: gets a line of text at each phase.

    Returns:
        ``page`` (path of the page), ``steps``, ``seed``, ``seconds``, ``teacher`` (held-out ``ce``,
        ``entropy`` and number of ``rows``) and ``runs``: for each student its ``loss`` weights,
        ``history`` (log rows) and ``final`` (held-out figures).

    Raises:
        DataError: this Python comes without its help topics.
    """
    started = time.monotonic()
    train_text, heldout_text = write_corpus(out)
    report("1/4 teacher: reads both texts once and keeps its predictions")
    caches = {
        "train": _capture(train_text, out / "cache", report),
        "heldout": _capture(heldout_text, out / "cache-heldout", report),
    }
    student = _make_student(out / "student-start", seed=seed)
    with _one_thread():
        runs = _train_students(caches, student, out, report, steps=steps, seed=seed)
    page = out / "report.html"
    result: dict[str, Any] = {
        "page": str(page),
        "steps": steps,
        "seed": seed,
        "teacher": _teacher_figures(caches["heldout"]),
        "runs": runs,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_report(page, result)
    (out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    report(f"4/4 page with curves: {page}")
    return result


def _capture(text: Path, cache: Path, report: Callable[[str], None]) -> Path:
    """Store the teacher's distributions over every position of a text."""
    config = PrecomputeConfig(
        teacher=str(TEACHER),
        data=(str(text),),
        cache=str(cache),
        dtype="float32",
        device="cpu",
        on_long="split",
        threads=1,
    )
    shown = 0.0

    def show(step: Progress) -> None:
        nonlocal shown
        if step.seconds - shown >= CAPTURE_LINE_SECONDS or step.tokens_done == step.tokens_total:
            shown = step.seconds
            rate = step.tokens_done / max(step.seconds, 1e-9)
            report(
                f"    {cache.name}: {step.tokens_done:,} of {step.tokens_total:,} tokens, "
                f"{rate:,.0f} tokens/s"
            )

    with _logged(cache.parent):
        cachekd.precompute(config, progress=show)
    return cache


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: models this small gain little, and on busy cores lose much."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _logged(out: Path) -> Iterator[None]:
    """Send what libraries print to a file of the demo: its own lines shall be seen."""
    with (out / "log.txt").open("a", encoding="utf-8") as log, redirect_stderr(log):
        yield


def _make_student(folder: Path, *, seed: int) -> Path:
    """A student with random weights, a fifth of the teacher's size, with its tokenizer."""
    from transformers import AutoTokenizer

    from cachekd.demo.models import make_model

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    model = make_model(tokenizer, layers=2, width=96, heads=4, hidden=256, seed=seed)
    with _logged(folder.parent):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_students(
    caches: Mapping[str, Path],
    student: Path,
    out: Path,
    report: Callable[[str], None],
    *,
    steps: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Train the same student once for each of `RUNS`."""
    runs = {}
    for number, (name, loss) in enumerate(RUNS.items(), start=2):
        report(f"{number}/4 student, {name}: {steps} steps, no teacher loaded")
        folder = out / f"student-{name.replace(' ', '-')}"
        if (folder / RECORD).exists():
            shutil.rmtree(folder)
        config = _training(caches, student, folder, loss, steps=steps, seed=seed)
        with _logged(out):
            outcome = cachekd.train(config, progress=_show_evaluations(report))
        runs[name] = {
            "loss": dict(loss),
            "history": outcome["history"],
            "final": outcome["final_eval"],
        }
    return runs


def _show_evaluations(
    report: Callable[[str], None],
) -> Callable[[int, int, Mapping[str, Any]], None]:
    """A line for each evaluation."""

    def show(step: int, last: int, row: Mapping[str, Any]) -> None:
        if "eval_kl" in row and step:
            report(
                f"    step {step:>4} of {last}   held-out KL to the teacher {row['eval_kl']:.3f}"
                f"   loss {row['eval_ce']:.3f}"
            )

    return show


def _training(
    caches: Mapping[str, Path],
    student: Path,
    folder: Path,
    loss: Mapping[str, float],
    *,
    steps: int,
    seed: int,
) -> TrainConfig:
    every = max(steps // EVALUATIONS, 1)
    return TrainConfig(
        cache=(str(caches["train"]),),
        eval_cache=str(caches["heldout"]),
        student=str(student),
        output_dir=str(folder),
        objective="kd",
        objective_options={"temperature": 1.0, "loss": dict(loss)},
        training={
            "max_steps": steps,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 32,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": every,
            "logging_steps": every,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": seed,
        },
    )


def _teacher_figures(cache: Path) -> dict[str, float]:
    """The teacher's own held-out loss and entropy, from its cache: nats per token."""
    rows, loss, entropy = 0, 0.0, 0.0
    opened = cachekd.open_cache(str(cache))
    for index in range(len(opened)):
        logits = opened[index].logits
        rows += logits.rows
        loss -= float(logits.next_logprob.sum(dtype="float64"))
        entropy += float(logits.entropy.sum(dtype="float64"))
    return {
        "ce": loss / rows if rows else math.nan,
        "entropy": entropy / rows if rows else math.nan,
        "rows": rows,
    }
