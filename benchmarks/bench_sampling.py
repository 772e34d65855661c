"""Unbiased targets: bytes beside random-sampling KD at equal variance, and the loss gradient.

A real teacher scores held-out windows twice: as its dense distributions, and through cachekd
(selection, packed codec, decoding). Random-sampling KD is taken as published: N = 50 draws, 24 bits
a distinct token, variance E|p_hat - p|^2 = (1 - sum p^2) / N. The threshold tau of the selection
top_k+sampled is set so that its variance, the sum of p (tau - p) over p < tau, is the same on
average. The student of the gradient test is the teacher with noise on its weights; the gradient is
that of its LM head over all rows.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from make_teacher import HELD_OUT, corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from cachekd.codecs import CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.codecs._scalars import pack_scalars
from cachekd.codecs._streams import pack
from cachekd.codecs.packed import PackedCodec
from cachekd.config import PrecomputeConfig
from cachekd.losses.ragged import entry_rows
from cachekd.losses.targets import estimate
from cachekd.teachers import Selection
from cachekd.teachers.hf import HFTeacher
from cachekd.types import TopKLogits

WINDOW, DRAWS, NOISE = 129, 50, 0.05


@dataclass(frozen=True)
class Bench:
    """Teacher, student, and the windows that both read, int32 [W, 129]."""

    teacher: HFTeacher
    model: Any
    student: Any
    windows: np.ndarray
    vocab: int

    def dense(self, model: Any, window: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [128, V] and hidden states [128, d] of a model, float32."""
        ids = torch.from_numpy(window[None].astype(np.int64))
        with torch.inference_mode():
            hidden = model.model(input_ids=ids).last_hidden_state[0, :-1]
            return torch.softmax(model.lm_head(hidden).float(), -1), hidden

    def records(self, selection: Selection) -> list[TopKLogits]:
        """Targets of all windows."""
        made: list[TopKLogits] = []
        for start in range(0, len(self.windows), 8):
            part = list(self.windows[start : start + 8])
            made += self.teacher.score(part, WINDOW, selection, [None] * len(part))
        return made


def setup(arguments: argparse.Namespace) -> Bench:
    """Load everything."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    ids: list[int] = []
    for text in corpus(arguments.data_root):
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= HELD_OUT:
            break
    count = arguments.windows
    windows = np.array(ids[: count * WINDOW], np.int32).reshape(count, WINDOW)
    config = PrecomputeConfig(teacher=str(arguments.teacher), data=("-",), cache="-")
    teacher = HFTeacher.load(config, HFTeacher.identify(config), torch.get_num_threads())
    model = AutoModelForCausalLM.from_pretrained(arguments.teacher).eval()
    student = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in student.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(NOISE * weight.std().nan_to_num(1.0) * noise)
    return Bench(teacher, model, student, windows, len(tokenizer))


def variances(bench: Bench, taus: list[float]) -> tuple[float, list[float], float]:
    """Mean variance of random-sampling KD, of each tau, and distinct tokens of 50 draws."""
    totals, rows = np.zeros(2 + len(taus)), 0
    for window in bench.windows:
        p = bench.dense(bench.model, window)[0].double()
        per_tau = [torch.where(p < tau, p * (tau - p), 0.0).sum() for tau in taus]
        distinct = (1 - (1 - p) ** DRAWS).sum()
        values = [(1 - (p**2).sum(1)).sum() / DRAWS, *per_tau, distinct]
        totals += np.array([float(value) for value in values])
        rows += len(p)
    mean = totals / rows
    return float(mean[0]), mean[1:-1].tolist(), float(mean[-1])


def selection(bench: Bench, **kept: Any) -> Selection:
    """A selection with this teacher's vocabulary."""
    settings: dict[str, Any] = {"k": 64, "p": 1.0, "min_k": 1, "temperatures": ()}
    return Selection(vocab_size=bench.vocab, **{**settings, **kept})


def packed_bytes(records: list[TopKLogits], header: CodecHeader) -> tuple[float, float]:
    """Bytes a token of targets, prior from the first half, measured on the second; and entries."""
    half = len(records) // 2
    codec = PackedCodec(header, learn_prior(records[:half], header.vocab_size, budget=400_000))
    held = records[half:]
    rows = sum(record.rows for record in held)
    whole = sum(len(codec.encode(record)) for record in held)
    extra = sum(len(pack(pack_scalars(record, header)[1:])) for record in held)
    return (whole - extra) / rows, sum(len(record.ids) for record in held) / rows


def p_hat(records: list[TopKLogits], vocab: int, how: str) -> list[torch.Tensor]:
    """Each window's target as the loss sees it, dense float32 [128, V]."""
    made = []
    for record in records:
        offsets, ids = torch.from_numpy(record.offsets), torch.from_numpy(record.ids).long()
        logprobs, rows = torch.from_numpy(record.logprobs), entry_rows(offsets)
        if how == "sampled":
            assert record.weights is not None
            targets: Any = {
                "offsets": offsets,
                "logprobs": logprobs,
                "tail": torch.from_numpy(record.tail),
                "entry_weights": torch.from_numpy(record.weights),
            }
            values = estimate(targets)
        else:  # renormalised on the head
            mass = torch.zeros(record.rows).index_add_(0, rows, logprobs.exp())
            values = logprobs.exp() / mass[rows]
        made.append(torch.zeros(record.rows, vocab).index_put_((rows, ids), values))
    return made


def gradients(bench: Bench, targets: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradient [V, d] of the student's LM head under each target, and under the dense teacher."""
    total: dict[str, torch.Tensor] = {}
    for i, window in enumerate(bench.windows):
        q, hidden = bench.dense(bench.student, window)
        dense = bench.dense(bench.model, window)[0]
        for name, made in {**targets, "dense": [dense] * (i + 1)}.items():
            scale = made[i].sum(1, keepdim=True) if name.startswith("tau") else 1.0
            grad = (scale * q - made[i]).T @ hidden
            total[name] = total[name] + grad if name in total else grad
    return total


def compared(found: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
    """Angle and length of a gradient beside the dense one."""
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), dense.flatten(), 0)
    return {
        "cosine": round(cosine.item(), 5),
        "angle_degrees": round(float(np.degrees(np.arccos(min(1.0, cosine.item())))), 2),
        "norm_ratio": round((found.norm() / dense.norm()).item(), 4),
        "relative_error": round(((found - dense).norm() / dense.norm()).item(), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    bench = setup(arguments)
    taus = np.geomspace(0.005, 0.2, 40).tolist()
    wanted, of_tau, distinct = variances(bench, taus)
    tau = float(np.exp(np.interp(wanted, of_tau, np.log(taus))))
    header: dict[str, Any] = {
        "codec": "packed",
        "vocab_size": bench.vocab,
        "temperatures": (),
        "values": "float16",
        "prior": "-",
    }
    kept, drawn_kind = selection(bench, tau=tau, k=256), selection(bench, samples=DRAWS, k=0)
    draws = bench.records(drawn_kind)
    size, entries = packed_bytes(bench.records(kept), CodecHeader(tau=tau, **header))
    drawn, _ = packed_bytes(draws, CodecHeader(samples=DRAWS, **header))
    bench = replace(bench, windows=bench.windows[: arguments.windows // 4])
    ours = [bench.records(replace(kept, seed=seed)) for seed in range(arguments.seeds)]
    published = 3 * distinct
    found: dict[str, Any] = {
        "variance": {"random_sampling_50": wanted, "tau": wanted},
        "tau": tau,
        "entries_per_token": {"random_sampling_50": round(distinct, 2), "tau": round(entries, 2)},
        "bytes_per_token": {
            "random_sampling_as_published": round(published, 2),
            "random_sampling_packed": round(drawn, 2),
            "tau_packed": round(size, 2),
        },
        "ratio_at_equal_variance": round(size / published, 3),
        "target": 0.4,
    }
    targets = {f"tau {s}": p_hat(made, bench.vocab, "sampled") for s, made in enumerate(ours[:1])}
    part = draws[: len(bench.windows)]
    targets["sampled 50, systematic"] = p_hat(part, bench.vocab, "sampled")
    for k in (12, 50):
        targets[f"top {k} renormalised"] = p_hat(
            bench.records(selection(bench, k=k)), bench.vocab, "head"
        )
    grads = gradients(bench, targets)
    del targets
    found["gradient"] = {
        name: compared(grad, grads["dense"]) for name, grad in grads.items() if name != "dense"
    }
    found["bias"] = bias(bench, ours, grads["dense"])
    save("sampling", found)


def bias(bench: Bench, runs: list[list[TopKLogits]], dense: torch.Tensor) -> dict[str, float]:
    """Relative error of the mean gradient of several seeds beside that of one: noise averages out.

    With no bias the error falls like one over the root of the number of seeds.
    """
    errors, mean = [], torch.zeros_like(dense)
    for records in runs:
        grad = gradients(bench, {"tau": p_hat(records, bench.vocab, "sampled")})["tau"]
        errors.append(((grad - dense).norm() / dense.norm()).item())
        mean += grad / len(runs)
    of_mean = ((mean - dense).norm() / dense.norm()).item()
    single = float(np.sqrt(np.mean(np.square(errors))))
    return {
        "seeds": len(runs),
        "error_of_one": round(single, 5),
        "error_of_the_mean": round(of_mean, 5),
        "expected_without_bias": round(single / len(runs) ** 0.5, 5),
    }


if __name__ == "__main__":
    main()
