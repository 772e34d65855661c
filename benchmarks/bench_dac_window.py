"""Where the window of DAC-KL goes: with and without a guard, on fixed rows and with a student.

Made-up rows: a teacher whose log-probabilities fall with a power of the rank, plus noise, and a
student that is the teacher plus more noise. The window is trained by the loss alone, as in the
paper; once with the student's rows fixed, once with a student (a matrix of low rank that cannot
reach the teacher) that learns from the same loss. Reported are means over rows after training:
teacher mass within the window (``coverage``), its size in classes, its limits in log-rank, the
divergence in it, and of the student the full forward KL to the teacher, which no window hides.
``ratio`` is the coverage without a guard over that with it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import save
from torch import Tensor

from cachekd.losses.fused import Reading, logits_loss
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.types import TargetTensors

COMBINES = ("tail", "sum", "renorm")
RATE, STUDENT_RATE = 0.02, 0.05


def rows(count: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Logits of teacher and student, each row with its classes in another order."""
    generator = torch.Generator().manual_seed(0)
    base_V = -1.2 * torch.arange(1, vocab + 1).double().log()
    teacher_NV = base_V + 0.5 * torch.randn(count, vocab, generator=generator).double()
    shuffled = torch.stack([row[torch.randperm(vocab, generator=generator)] for row in teacher_NV])
    return shuffled, shuffled + 0.9 * torch.randn(count, vocab, generator=generator).double()


def targets_of(teacher_NV: Tensor) -> TargetTensors:
    """Whole distributions as targets; the next token is the most probable one."""
    count, vocab = teacher_NV.shape
    log_p_NV = torch.log_softmax(teacher_NV, 1)
    values_NV, ids_NV = log_p_NV.sort(1, descending=True)
    return {
        "offsets": torch.arange(count + 1) * vocab,
        "ids": ids_NV.flatten(),
        "logprobs": values_NV.flatten().float(),
        "tail": torch.full((count,), -torch.inf),
        "next_ids": ids_NV[:, 0],
        "next_logprob": values_NV[:, 0].float(),
        "entropy": -(log_p_NV.exp() * log_p_NV).sum(1).float(),
        "weights": torch.ones(count),
        "lognorm": {},
    }


def train(
    teacher_NV: Tensor, start_NV: Tensor, steps: int, rank: int, options: dict[str, Any]
) -> dict[str, float]:
    """Means over rows after training; ``rank`` 0 leaves the student as it is."""
    objective, targets = build("dac_kl", options), targets_of(teacher_NV)
    targets = objective.prepare(targets, teacher_NV.shape[1])
    learned = tuple(objective.learned().parameters())
    groups: list[dict[str, Any]] = [{"params": list(learned), "lr": RATE}]
    generator = torch.Generator().manual_seed(1)
    left, right = (
        (0.1 * torch.randn(size, max(rank, 1), generator=generator)).requires_grad_()
        for size in teacher_NV.shape
    )
    if rank:
        groups.append({"params": [left, right], "lr": STUDENT_RATE})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(steps):
        student_NV = left @ right.t() if rank else start_NV.float()
        output = logits_loss(student_NV, targets, objective, Reading(learned=learned))
        optimizer.zero_grad()
        (output.loss_sum / output.weight_sum).backward()
        optimizer.step()
    means = {name: (value / output.weight_sum).item() for name, value in output.metrics.items()}
    kept = ("dac_kl", "coverage", "window_size", "window_upper", "window_lower")
    full = dense_forward_kl(teacher_NV, student_NV.detach()).mean().item()
    return {name: round(means[name], 4) for name in kept} | {"full_kl": round(full, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8, help="of the student that learns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher_NV, start_NV = rows(arguments.rows, arguments.vocab)
    found: dict[str, Any] = {}
    for student, rank in (("fixed", 0), ("learning", arguments.rank)):
        for combine in COMBINES:
            case = {}
            for name, guard in (("unguarded", 0.0), ("guarded", 20.0)):
                options = {"combine": combine, "guard": guard}
                case[name] = train(teacher_NV, start_NV, arguments.steps, rank, options)
            ratio = case["unguarded"]["coverage"] / case["guarded"]["coverage"]
            found[f"{student}_{combine}"] = {**case, "ratio": round(ratio, 3)}
    full = round(dense_forward_kl(teacher_NV, start_NV).mean().item(), 4)
    save("dac_window", {"settings": vars(arguments), "full_kl_fixed": full, "windows": found})


if __name__ == "__main__":
    main()
