"""The teacher's own noise over batch shapes, and how far two caches made with them differ.

The same teacher scores the same documents alone and in sorted batches; both go through the whole
of ``precompute``. Differences are of stored log-probabilities in nats, over all entries that both
captures kept, and over next-token log-probability and entropy; over the tail where both kept the
same entries. Where noise moves a row's cumulative mass across the top-p limit, one entry more or
less is kept, and head and tail together are still the same distribution: such rows are counted.
Then the same for the dense logits of two direct forward passes, which is the noise that no cache
can be below.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import save
from transformers import AutoModelForCausalLM

import cachekd
from cachekd import PrecomputeConfig
from cachekd.types import Record


def capture(teacher: Path, data: Path, cache: Path, samples: int, **shape: int) -> cachekd.Cache:
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(teacher),
            data=(str(data),),
            cache=str(cache),
            max_samples=samples,
            logits_values="float32",
            on_long="truncate",
            **shape,
        )
    )
    return cachekd.open_cache(str(cache))


def differences(left: Record, right: Record) -> tuple[list[float], int]:
    """Absolute differences of all values, entries matched by id, and rows of other supports."""
    a, b = left.logits, right.logits
    rows_a = np.repeat(np.arange(a.rows), np.diff(a.offsets))
    rows_b = np.repeat(np.arange(b.rows), np.diff(b.offsets))
    place_a = rows_a * a.vocab_size + a.ids
    place_b = rows_b * b.vocab_size + b.ids
    _, i, j = np.intersect1d(place_a, place_b, return_indices=True)
    kept = np.bincount(rows_a[i], minlength=a.rows)
    same = (kept == np.diff(a.offsets)) & (kept == np.diff(b.offsets))
    parts = [np.abs(a.logprobs[i] - b.logprobs[j]), np.abs(a.tail - b.tail)[same]]
    parts += [np.abs(getattr(a, name) - getattr(b, name)) for name in ("next_logprob", "entropy")]
    return np.concatenate(parts).tolist(), int((~same).sum())


def dense_noise(teacher: Path, cache: cachekd.Cache, dtype: torch.dtype) -> float:
    """Largest difference of dense log-probs of a document alone and in a padded batch."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype).eval()
    records = sorted(cache, key=lambda record: len(record.input_ids))[-64:]
    worst = 0.0
    for start in range(0, len(records), 8):
        batch = records[start : start + 8]
        longest = max(len(record.input_ids) for record in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for b, record in enumerate(batch):
            ids_BT[b, : len(record.input_ids)] = torch.from_numpy(record.input_ids.astype(np.int64))
            mask_BT[b, : len(record.input_ids)] = 1
        with torch.no_grad():
            together = model(input_ids=ids_BT, attention_mask=mask_BT).logits.log_softmax(-1)
            for b, record in enumerate(batch):
                length = len(record.input_ids)
                alone = model(input_ids=ids_BT[b : b + 1, :length]).logits.log_softmax(-1)
                gap = (together[b, :length] - alone[0]).abs()
                worst = max(worst, float(gap.max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400)
    args = parser.parse_args()
    teacher = args.data_root / "tiny-teacher/ecom"
    data = args.data_root / "ecommerce-cucom/dev.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        shapes = {
            "alone": {"batch_tokens": 1, "sort_window": 1},
            "sorted": {"batch_tokens": 4096, "sort_window": 1024},
        }
        caches = {
            name: capture(teacher, data, Path(folder) / name, args.samples, **shape)
            for name, shape in shapes.items()
        }
        pairs = [
            differences(caches["alone"].get(record.input_ids), record)
            for record in caches["sorted"]
        ]
        found = [value for values, _ in pairs for value in values]
        save(
            "noise",
            {
                "teacher": "tiny-teacher/ecom, 4.0M parameters, float32",
                "samples": len(caches["sorted"]),
                "same_sample_ids": caches["alone"].sample_ids == caches["sorted"].sample_ids,
                "values_compared": len(found),
                "rows": caches["sorted"].totals["targets"],
                "rows_with_one_entry_more_or_less": sum(rows for _, rows in pairs),
                "cache_difference_max_nats": float(np.max(found)),
                "cache_difference_p999_nats": float(np.quantile(found, 0.999)),
                "teacher_noise_dense_max_nats": dense_noise(
                    teacher, caches["sorted"], torch.float32
                ),
            },
        )


if __name__ == "__main__":
    main()
