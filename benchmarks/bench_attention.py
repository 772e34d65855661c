"""What attention targets cost and how true they are: KL against bytes, for every mode.

Documents of exactly T tokens go through the whole of ``precompute`` with real teachers, once for
each mode, over all layers. KL is the mean over rows, heads and layers of KL(original row || decoded
row) in float64; the originals are a direct forward pass of the eager model in float32, and where a
part of the keys was kept the remaining mass is spread evenly over the others. Bytes are those of
the attention shards in whole, divided by tokens, layers and heads. They are compared with full fp16
maps (T x T for each head) and with their causal half. A mean of heads is one map a layer and is
compared with the full maps of that one map; ``times_smaller_than_all_heads`` says the other. Where
rows are drawn, KL is over the drawn ones, and bytes are still divided by all tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from transformers import AutoModelForCausalLM, AutoTokenizer

import cachekd
from cachekd import PrecomputeConfig

MODES: dict[str, dict[str, Any]] = {
    **{f"maps sqrt 1/{n}": {"attention": "maps", "attention_step": 1 / n} for n in (31, 63, 127)},
    "maps log 1/4": {"attention": "maps", "attention_values": "log"},
    **{f"maps top {m}": {"attention": "maps", "attention_keys": m} for m in (8, 16, 32)},
    **{f"qk {s}": {"attention": "qk", "attention_step": s} for s in (0.02, 0.03, 0.04, 0.06)},
    "maps sqrt 1/127, half the rows": {
        "attention": "maps",
        "attention_step": 1 / 127,
        "attention_row_share": 0.5,
    },
    "maps sqrt 1/127, a quarter of the rows": {
        "attention": "maps",
        "attention_step": 1 / 127,
        "attention_row_share": 0.25,
    },
    "qk 0.03, half the rows": {"attention": "qk", "attention_row_share": 0.5},
    "maps sqrt 1/127, mean of heads": {
        "attention": "maps",
        "attention_step": 1 / 127,
        "attention_heads": "mean",
    },
    "maps top 16, mean of heads": {
        "attention": "maps",
        "attention_keys": 16,
        "attention_heads": "mean",
    },
}
TEACHERS = {
    "stories260k": ("stories260k-hf", "tinystories-1k/test.jsonl"),
    "sft": ("tiny-teacher/sft", "ecommerce-cucom/test.jsonl"),
}
TARGET_KL, TARGET_RATIO = 1e-3, 20.0


def documents(teacher: Path, text: Path, length: int, count: int) -> Iterator[list[int]]:
    """Token ids of natural text, row after row, cut into documents of one length."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    ids: list[int] = []
    with text.open() as stream:
        for line in stream:
            row = json.loads(line)
            words = row.get("text") or f"{row['instruction']}\n{row['output']}\n"
            ids += tokenizer(words, truncation=False, verbose=False)["input_ids"]
            if len(ids) >= length * count:
                break
    return (ids[i * length : (i + 1) * length] for i in range(count))


def originals(model: Any, record: cachekd.Cache) -> Iterator[np.ndarray]:
    """Maps of each layer of a document, float64 [H, L-1, L-1]."""
    ids = torch.from_numpy(record.input_ids.astype(np.int64))[None]
    with torch.inference_mode():
        output = model(input_ids=ids, output_attentions=True)
    return (maps[0, :, :-1, :-1].double().numpy() for maps in output.attentions)


def divergences(model: Any, cache: cachekd.Cache) -> np.ndarray:
    """KL(original || decoded) of every row of every head, layer and document."""
    found = []
    for record in cache:
        attention = record.attention
        for place, maps_HLL in enumerate(originals(model, record)):
            if attention.heads.tolist() == [-1]:
                maps_HLL = maps_HLL.mean(axis=0, keepdims=True)
            true_HRL = maps_HLL[:, attention.rows]
            read_HRL = attention.dense(place).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(true_HRL > 0, true_HRL * np.log(true_HRL / read_HRL), 0)
            found.append(terms.sum(-1).ravel())
    return np.concatenate(found)


def measure(teacher: Path, model: Any, data: Path, length: int, mode: str) -> dict[str, Any]:
    """One mode: capture, decode, compare."""
    layers = tuple(range(model.config.num_hidden_layers))
    with tempfile.TemporaryDirectory() as folder:
        report = cachekd.precompute(
            PrecomputeConfig(
                teacher=str(teacher),
                data=(str(data),),
                cache=folder + "/cache",
                attention_layers=layers,
                threads=1,
                **MODES[mode],
            )
        )
        cache = cachekd.open_cache(folder + "/cache")
        started = time.perf_counter()
        for record in cache:
            assert record.attention is not None
        seconds = time.perf_counter() - started
        kl = divergences(model, cache)
    mean = "mean" in mode
    heads = 1 if mean else model.config.num_attention_heads
    size = report["attention_bytes"] / (report["tokens"] * len(layers) * heads)
    estimated = report["attention_bytes_per_token_estimated"] / (len(layers) * heads)
    result = {
        "bytes_per_token_and_head": round(size, 3),
        "estimated_by_the_dry_run": round(estimated, 3),
        "kl_mean_nats": float(f"{kl.mean():.4g}"),
        "kl_p99_nats": float(f"{np.quantile(kl, 0.99):.4g}"),
        "times_smaller_than_full_fp16": round(2 * length / size, 2),
        "times_smaller_than_causal_fp16": round((length + 1) / size, 2),
        "read_megabytes_of_fp16_maps_per_second": round(
            report["tokens"] * len(layers) * heads * 2 * length / 1e6 / seconds, 1
        ),
        "rows_measured": len(kl),
    }
    if mean:
        whole = 2 * length * model.config.num_attention_heads
        result["times_smaller_than_all_heads"] = round(whole / size, 1)
    return result


def reaches(result: dict[str, Any]) -> bool:
    return bool(
        result["kl_mean_nats"] < TARGET_KL
        and result["times_smaller_than_full_fp16"] >= TARGET_RATIO
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2048, help="of each teacher and length")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (folder, text) in TEACHERS.items():
        teacher = args.data_root / folder
        model = AutoModelForCausalLM.from_pretrained(teacher, attn_implementation="eager").eval()
        for length in (128, 512):
            with tempfile.TemporaryDirectory() as place:
                data = Path(place) / "data.jsonl"
                count = args.tokens // length
                rows = documents(teacher, args.data_root / text, length, count)
                data.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
                results[f"{name}, T = {length}"] = {
                    mode: measure(teacher, model, data, length, mode) for mode in MODES
                }
    save(
        "attention",
        {
            "target": f"KL < {TARGET_KL} nats and {TARGET_RATIO:g}x under full fp16 maps",
            "teachers": {
                "stories260k": "public, 260 k parameters, 5 layers x 8 heads (4 key heads) x 8",
                "sft": "4.0 M parameters, 4 layers x 4 heads (2 key heads) x 64",
            },
            "reach_the_target": {
                place: [mode for mode, result in modes.items() if reaches(result)]
                for place, modes in results.items()
            },
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
