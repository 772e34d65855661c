"""What an attention loss costs a student: rows from queries and keys against whole T x T maps.

One step is forward and backward of a small Llama in float32 on one document of T tokens, with
forward KL to 16 tokens a row and the KL of attention of all four layers and heads. ``rows`` is the
loss of `cachekd.training.attention` beside the student's own sdpa attention; ``maps`` runs eager
attention with ``output_attentions`` and compares whole maps, the teacher's being there as dense
float32 already; ``kd`` has no attention loss. Ways take turns in one process; times are medians.
Memory is the most that a step holds above what was there before it, as the profiler counts it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import median, save
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cachekd.data.attention import AttentionShape
from cachekd.losses.attention import AttentionMapping, map_heads, map_layers
from cachekd.training.attention import StudentAttention
from cachekd.types import AttentionTargets

LAYERS, HEADS, WIDTH, VOCAB, K = 4, 4, 256, 2048, 16
Step = Callable[[], None]


def student(attention: str) -> Any:
    """The same random model for every way."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=4096,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).train()


def teacher_maps(length: int) -> Tensor:
    """Causal maps of L-1 rows, float32 [A, H, L-1, L-1]."""
    scores = torch.randn(LAYERS, HEADS, length - 1, length - 1) * 2
    hidden = torch.ones(length - 1, length - 1).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def targets(maps_AHRL: Tensor, keys: int, every: int) -> AttentionTargets:
    """Each ``every``-th row with its best keys (0: all of them), as a batch holds them."""
    rows = torch.arange(0, maps_AHRL.shape[-1], every)
    some = maps_AHRL[:, :, rows]
    kept = torch.arange(some.shape[-1]) <= rows[:, None]
    kept = kept.expand_as(some)
    if keys:
        kept = kept & (some >= some.topk(keys, -1).values[..., -1:])
    counts = kept.sum(-1).flatten()
    return {
        "documents": [
            {"batch_row": 0, "start": 0, "length": some.shape[-1], "rows": len(rows)},
        ],
        "positions": rows,
        "weights": torch.full((len(rows),), float(every)),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        "keys": kept.nonzero()[:, -1].int(),
        "probs": some[kept],
        "rest": some.masked_fill(kept, 0).sum(-1),
    }


def kd_loss(logits_LV: Tensor) -> Tensor:
    """Cross entropy to made-up targets of K tokens a row."""
    generator = torch.Generator().manual_seed(1)
    ids_LK = torch.randint(VOCAB, (len(logits_LV), K), generator=generator)
    return -logits_LV.log_softmax(-1).gather(1, ids_LK).mean(1).sum()


def kd_step(model: Any, ids: Tensor) -> None:
    """No attention loss."""
    kd_loss(model(ids, use_cache=False).logits[0, :-1]).backward()
    model.zero_grad()


def rows_step(model: Any, ids: Tensor, tap: StudentAttention, taught: AttentionTargets) -> None:
    """The loss of the project."""
    with tap.watching({"attention": taught}):  # type: ignore[typeddict-item]
        logits = model(ids, use_cache=False).logits
    (kd_loss(logits[0, :-1]) + tap.output()).backward()
    model.zero_grad()


def maps_step(model: Any, ids: Tensor, teacher_AHRL: Tensor) -> None:
    """Whole maps of all layers."""
    output = model(ids, use_cache=False, output_attentions=True)
    loss = kd_loss(output.logits[0, :-1])
    for maps, teacher_HRL in zip(output.attentions, teacher_AHRL, strict=True):
        log_q = maps[0, :, :-1, :-1].clamp(min=1e-9).log()
        kl = torch.special.xlogy(teacher_HRL, teacher_HRL) - teacher_HRL * log_q
        loss = loss + kl.sum() / (HEADS * LAYERS)
    loss.backward()
    model.zero_grad()


def ways(length: int) -> dict[str, Step]:
    """Steps by name."""
    ids = torch.arange(length)[None] * 7 % VOCAB
    shape = AttentionShape(layers=LAYERS, heads=HEADS, key_heads=HEADS, head_width=WIDTH // HEADS)
    mapping = AttentionMapping(
        student=shape,
        layers=map_layers(LAYERS, LAYERS, range(LAYERS)),
        heads=map_heads(HEADS, HEADS, range(HEADS)),
    )
    teacher, tapped = teacher_maps(length), student("sdpa")
    row = partial(rows_step, tapped, ids, StudentAttention(tapped, mapping))
    return {
        "kd": partial(kd_step, student("sdpa"), ids),
        "rows, all keys": partial(row, targets(teacher, 0, 1)),
        "rows, 16 keys": partial(row, targets(teacher, 16, 1)),
        "rows, 16 keys, a quarter of the rows": partial(row, targets(teacher, 16, 4)),
        "maps": partial(maps_step, student("eager"), ids, teacher),
    }


def peak(step: Step) -> float:
    """Megabytes that a step holds at most above what was there."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    sizes = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return float(f"{sizes.max() / 1e6:.4g}")


def measure(length: int, repeats: int) -> dict[str, Any]:
    """All ways in turns."""
    steps = ways(length)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    found = {
        name: {"seconds": median(times[name][1:]), "peak_mb": peak(step)}
        for name, step in steps.items()
    }
    full = found["maps"]
    for facts in found.values():
        facts["times_faster_than_maps"] = float(f"{full['seconds'] / facts['seconds']:.3g}")
        facts["times_less_memory_than_maps"] = float(f"{full['peak_mb'] / facts['peak_mb']:.3g}")
    return found


def main() -> None:
    """Measure each length and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths = {str(length): measure(length, options.repeats) for length in options.lengths}
    save("student_attention", {"repeats": options.repeats, "threads": 1, "tokens": lengths})


if __name__ == "__main__":
    main()
