"""Training on two processes against one: loss curves, weights, continued runs, and what it costs.

The same cache, seeds and samples of a step in every run: one process, two with DDP and two with
FSDP2 (gloo, CPUs, one thread each), full weights and LoRA, for forward KL with cross entropy and
for an objective that learns parameters of its own, in float32 and float64. Told is the largest
difference from one process of any step's loss, of any other logged figure, and of a weight at the
end; continued runs change the number of processes at the checkpoint in the middle. ``accumulated``
is one process that takes each step in two parts: sums in another order, the rounding that any such
comparison has.

Cost is taken with a larger student: all ways in turn, round by round, medians over the rounds, of
steps after the second. With fewer idle processors than processes the rates by the clock say little
(``machine.load_1min``); tokens a processor second are of all processes together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_setup as setup
from common import in_child, median, save
from training_spread import BATCH, FIGURES, WAYS, Mark, Run, Trained, Way, trained
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, SAMPLES, STEPS = 512, 30, 20  # an epoch ends within its eighth step
OBJECTIVES: dict[str, dict[str, Any]] = {
    "kd": {"objective": "kd", "objective_options": {"loss": {"ce": 0.5, "kd": 0.5}}},
    "dac_kl": {"objective": "dac_kl"},
}
CONTINUED = (
    ("one", "ddp"),
    ("one", "fsdp2"),
    ("ddp", "one"),
    ("fsdp2", "one"),
    ("one_lora", "fsdp2_lora"),
    ("fsdp2_lora", "one_lora"),
)
COST_VOCAB, COST_STEPS, DISCARD = 2048, 8, 2


def make_beds(root: Path) -> None:
    """A cache of documents of many lengths, and a student of two layers in two precisions."""
    from cachekd import PrecomputeConfig, precompute

    rng = np.random.default_rng(0)
    rows = [rng.integers(2, VOCAB, n).tolist() for n in rng.integers(8, 64, SAMPLES)]
    data = root / "data.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    for name, width, dtype in (
        ("teacher", 96, torch.float32),
        ("float32", 64, torch.float32),
        ("float64", 64, torch.float64),
    ):
        torch.manual_seed(width)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).to(dtype).save_pretrained(root / name)
        setup.tokenizer(VOCAB).save_pretrained(root / name)
    settings = {"logits_values": "float32", "threads": 1, "writers": 0}
    where = {"teacher": str(root / "teacher"), "data": (str(data),), "cache": str(root / "cache")}
    precompute(PrecomputeConfig(**where, **settings))


def _run(root: Path, dtype: str, objective: str, steps: int) -> Run:
    return Run(
        cache=root / "cache",
        student=root / dtype,
        steps=steps,
        keep=steps // 2,
        settings={"dtype": "auto", **OBJECTIVES[objective]},
    )


def differences(found: Trained, expected: Trained, after: int = 0) -> dict[str, float]:
    """Largest absolute differences, of the steps after this one."""
    both = sorted(step for step in found.rows.keys() & expected.rows.keys() if step > after)
    if len(both) < 2 or found.weights.keys() != expected.weights.keys():
        raise RuntimeError(f"expected runs of the same steps and weights; found {both}")
    apart = {
        name: max(abs(found.rows[step][name] - expected.rows[step][name]) for step in both)
        for name in FIGURES
        if name in expected.rows[both[0]]
    }
    others = [value for name, value in apart.items() if name != "loss"]
    largest = {
        "loss": apart["loss"],
        "other_figures": max(others),
        "weights": _apart(found.weights, expected.weights),
    }
    if expected.learned:
        largest["learned"] = _apart(found.learned, expected.learned)
    return {"steps": len(both), **{name: float(f"{value:.2g}") for name, value in largest.items()}}


def _apart(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest difference of any value."""
    both = [(value.double(), right[name].double()) for name, value in left.items()]
    return max((one - other).abs().max().item() for one, other in both)


def curves(root: Path, dtype: str, objective: str, steps: int) -> dict[str, Any]:
    """Differences of all ways, and of runs that another number of processes goes on with."""
    run = _run(root, dtype, objective, steps)
    folder = root / f"{dtype}-{objective}"
    runs = {name: trained(run, way, folder / name) for name, way in WAYS.items()}
    one = {False: runs["one"], True: runs["one_lora"]}
    found: dict[str, Any] = {
        name: differences(runs[name], one[way.adapter])
        for name, way in WAYS.items()
        if not name.startswith("one")
    }
    for first, then in CONTINUED:
        out, checkpoint = folder / f"{first}-{then}", f"checkpoint-{run.keep}"
        later = trained(run, WAYS[then], _begun(folder / first, out, checkpoint), out / checkpoint)
        found[f"{first}, then {then}"] = differences(later, one[WAYS[then].adapter], after=run.keep)
    losses = [runs["one"].rows[step]["loss"] for step in (1, steps)]
    largest = max(value.abs().max().item() for value in runs["one"].weights.values())
    return {
        "first_and_last_loss": [round(loss, 4) for loss in losses],
        "largest_weight": round(largest, 3),
        "from_one_process": found,
    }


def _begun(run: Path, out: Path, checkpoint: str) -> Path:
    """A folder in which a run goes on from the checkpoint of another."""
    shutil.copytree(run / checkpoint, out / checkpoint)
    shutil.copy(run / "run.json", out)
    return out


def make_cost_bed(root: Path, steps: int) -> None:
    """A cache of documents of 128 tokens, and a student of width 256."""
    sizes = setup.Sizes(vocab=COST_VOCAB, tokens=BATCH * setup.LENGTH, steps=steps)
    setup.write_caches(root, sizes, 1, ("k64",))
    setup.student(COST_VOCAB).save_pretrained(root / "student")
    setup.tokenizer(COST_VOCAB).save_pretrained(root / "student")


def rates(marks: list[list[Mark]]) -> dict[str, float]:
    """Tokens a second of all processes together, and a processor second."""
    tokens = sum(own[-2].tokens - own[DISCARD - 1].tokens for own in marks)
    clock = max(own[-1].clock - own[DISCARD].clock for own in marks)
    cpu = sum(own[-1].cpu - own[DISCARD].cpu for own in marks)
    return {"tokens_per_second": tokens / clock, "tokens_per_cpu_second": tokens / cpu}


def cost(root: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Rates of all ways, and their ratios to one process with the same weights, round by round."""
    run = Run(cache=root / "k64", student=root / "student", steps=steps)
    ways: dict[str, Way] = {name: way for name, way in WAYS.items() if way.parts == 1}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            out = root / f"{name}-{number}"
            taken[name].append(rates(trained(run, ways[name], out).marks))
    found: dict[str, Any] = {}
    for name, way in ways.items():
        base = taken["one_lora" if way.adapter else "one"]
        found[name] = {what: median([one[what] for one in taken[name]]) for what in base[0]}
        for what in base[0]:
            ratios = [one[what] / other[what] for one, other in zip(taken[name], base, strict=True)]
            found[name][f"{what}_over_one"] = median(ratios)
    return {
        "rounds": rounds,
        "steps": steps,
        "tokens_of_a_step": BATCH * setup.LENGTH,
        "ways": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke run that saves nothing")
    arguments = parser.parse_args()
    steps, rounds, cost_steps = STEPS, arguments.rounds, COST_STEPS
    dtypes, objectives = ("float32", "float64"), tuple(OBJECTIVES)
    if arguments.quick:
        steps, rounds, cost_steps = 4, 1, 4
        dtypes, objectives = ("float32",), ("kd",)
    torch.set_num_threads(1)  # before any fork
    result: dict[str, Any] = {"batch": BATCH, "curves": {}}
    keep = not arguments.quick
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        in_child(make_beds, root)
        for dtype in dtypes:
            for objective in objectives:
                found = curves(root, dtype, objective, steps)
                result["curves"][f"{objective} {dtype}"] = {"steps": steps, **found}
                save("train_processes", result, keep=keep)  # as they come
        (root / "cost").mkdir()
        in_child(make_cost_bed, root / "cost", cost_steps)
        result["cost"] = cost(root / "cost", rounds, cost_steps)
    save("train_processes", result, keep=keep)


if __name__ == "__main__":
    main()
