"""Real next-token distributions for the codec's benchmarks: read, or captured from a teacher.

A file of positions holds, for a training part (for priors) and an evaluation part, the 256 best of
each position, its entropy and its cross term with a unigram: enough for the exact KL of any stored
head with a flat, unigram or bucket tail. ``python benchmarks/positions.py`` makes one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cachekd.types import TopKLogits

BEST = 256
WINDOW = 128
Array = np.ndarray


@dataclass(frozen=True)
class Part:
    """N positions: the best ids and log-probs [N, 256], entropy and sum p log unigram [N]."""

    ids: Array
    logprobs: Array
    entropy: Array
    cross: Array


@dataclass(frozen=True)
class Positions:
    """Two parts of one teacher, and the unigram [V] that ``cross`` is taken with."""

    vocab: int
    unigram: Array
    train: Part
    evaluation: Part


def load(path: Path) -> Positions:
    """Read a file of positions (npz)."""
    data = np.load(path)
    unigram = data["unigram"].astype(np.float64)
    unigram /= unigram.sum()
    parts = []
    for name in ("train", "eval"):
        crossed = f"{name}_unigram_cross"
        logprobs = data[f"{name}_logprobs"].astype(np.float64)
        parts.append(
            Part(
                ids=data[f"{name}_ids"].astype(np.int64),
                logprobs=np.minimum(logprobs, 0.0),
                entropy=-data[f"{name}_neg_entropy"].astype(np.float64),
                # The training part is never judged.
                cross=data[crossed] if crossed in data else np.zeros(len(logprobs)),
            )
        )
    return Positions(len(unigram), unigram, *parts)


def records(part: Part, vocab: int, *, k: int, floor: float, length: int) -> list[TopKLogits]:
    """Records of ``length`` positions: at most k entries, none below ``floor`` but the best."""
    made = []
    for start in range(0, len(part.ids), length):
        logprobs = part.logprobs[start : start + length, :k]
        keep = np.exp(logprobs) >= floor
        keep[:, 0] = True
        head = (np.exp(logprobs) * keep).sum(1)
        rows = len(logprobs)
        made.append(
            TopKLogits(
                offsets=np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int64),
                ids=part.ids[start : start + length, :k][keep].astype(np.int32),
                logprobs=logprobs[keep].astype(np.float32),
                weights=None,
                tail=np.log(np.maximum(1 - head, 1e-6)).astype(np.float32),
                next_logprob=logprobs[:, 0].astype(np.float32),
                entropy=part.entropy[start : start + length].astype(np.float32),
                lognorm={1.0: np.zeros(rows, np.float32)},
                vocab_size=vocab,
            )
        )
    return made


def kl(positions: Positions, head_NK: Array, kept_NK: Array, tail_N: Array, power: float) -> Array:
    """Exact KL(dense || decoded) of each evaluation position, float64 [N].

    Args:
        positions: the evaluation part is judged.
        head_NK: decoded probabilities beside the 256 best of each position, 0 where not kept.
        kept_NK: which are kept.
        tail_N: decoded mass outside the head.
        power: the tail is spread like unigram**power over what is not kept; 0: evenly.
    """
    part, spread = positions.evaluation, positions.unigram**power
    p = np.exp(part.logprobs)
    inside = np.where(kept_NK, p * np.log(np.maximum(head_NK, 1e-300)), 0.0).sum(1)
    rest = 1 - (p * kept_NK).sum(1)
    room = spread.sum() - (spread[part.ids] * kept_NK).sum(1)
    log_unigram = np.log(positions.unigram)
    cross = part.cross - (p * log_unigram[part.ids] * kept_NK).sum(1)
    return -part.entropy - inside - rest * np.log(tail_N / room) - power * cross


def capture(model: object, ids: Array, unigram: Array | None) -> tuple[dict[str, Array], Array]:
    """Positions of windows of token ids, and the sum of the distributions [V]."""
    columns: dict[str, list[Array]] = {"ids": [], "logprobs": [], "neg_entropy": []}
    total = 0.0
    if unigram is not None:
        columns["unigram_cross"] = []
    for row in torch.from_numpy(ids).view(-1, WINDOW):
        with torch.inference_mode():
            logits = model(input_ids=row[None]).logits[0]  # type: ignore[operator]
        logprobs = torch.log_softmax(logits.double(), -1)
        p = logprobs.exp()
        best, at = logprobs.topk(BEST)
        columns["ids"].append(at.numpy().astype(np.uint16))
        columns["logprobs"].append(best.numpy().astype(np.float16))
        columns["neg_entropy"].append((p * logprobs).sum(-1).numpy().astype(np.float32))
        if unigram is not None:
            log_unigram = torch.from_numpy(np.log(unigram))
            columns["unigram_cross"].append((p @ log_unigram).numpy().astype(np.float32))
        total = total + p.sum(0).numpy()
    return {name: np.concatenate(values) for name, values in columns.items()}, np.asarray(total)


def main() -> None:
    from make_teacher import HELD_OUT, corpus
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    model = AutoModelForCausalLM.from_pretrained(arguments.teacher).eval()
    ids: list[int] = []
    for text in corpus(arguments.data_root):  # the teacher never saw the first HELD_OUT tokens
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= HELD_OUT:
            break
    array = np.array(ids[: 24576 + 8192], np.int64)
    train, total = capture(model, array[:24576], None)
    counts = np.bincount(array[:24576], minlength=len(total))
    unigram = (total + 0.1 * counts + 0.01) / (total + 0.1 * counts + 0.01).sum()
    held, _ = capture(model, array[24576:], unigram)
    np.savez_compressed(
        arguments.out,
        unigram=unigram.astype(np.float32),
        **{f"train_{name}": values for name, values in train.items()},
        **{f"eval_{name}": values for name, values in held.items()},
    )


if __name__ == "__main__":
    main()
