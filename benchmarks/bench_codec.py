"""Bytes a token against KL, beside DistillKit, Megatron-LM and raw layouts, on real distributions.

For each file of positions (see positions.py): the curve of the packed codec over its settings, and
each opponent's bytes and KL. All KL is exact, over the whole vocabulary. Opponents that store no
tail mass are given the exact one for nothing; all spread it by the same model (unigram to the half,
or evenly). The prior is learned on the training part; its own bytes are stated apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import peers
import positions as real
from common import save

from cachekd.codecs import CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.codecs._scalars import pack_scalars
from cachekd.codecs._streams import pack
from cachekd.codecs.packed import PackedCodec
from cachekd.types import TopKLogits

Array = np.ndarray
SQRT_STEPS = (6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 32, 40, 48, 64)
LOG_K = (8, 16, 32, 64, 128)
DISTILLKIT_K = (8, 16, 32, 64, 192)
BUDGET = 800_000
DOCUMENT = 1024
POWERS = {"unigram_half": 0.5, "flat": 0.0}


def dense_rows(made: list[TopKLogits], ids_NK: Array) -> tuple[Array, Array, Array]:
    """Decoded records beside the 256 best: probabilities and kept [N, 256], tail mass [N]."""
    vocab = made[0].vocab_size
    heads, kept, row = np.zeros(ids_NK.shape), np.zeros(ids_NK.shape, bool), 0
    scratch = np.zeros((DOCUMENT, vocab))
    for record in made:
        scratch[:] = -1
        of_row = np.repeat(np.arange(record.rows), np.diff(record.offsets))
        scratch[of_row, record.ids] = np.exp(record.logprobs.astype(np.float64))
        best = np.take_along_axis(scratch[: record.rows], ids_NK[row : row + record.rows], 1)
        heads[row : row + record.rows] = np.maximum(best, 0)
        kept[row : row + record.rows] = best >= 0
        row += record.rows
    return heads, kept, np.exp(np.concatenate([record.tail for record in made]).astype(np.float64))


def judged(positions: real.Positions, head: Array, kept: Array, tail: Array) -> dict[str, float]:
    """Mean KL under each tail model; heads are scaled to one minus the tail, as on decoding."""
    head = head * ((1 - tail) / head.sum(1))[:, None]
    return {
        f"kl_{name}": round(float(real.kl(positions, head, kept, tail, power).mean()), 5)
        for name, power in POWERS.items()
    }


def ours(positions: real.Positions, values: str, step: float, k: int) -> dict[str, Any]:
    """One setting of the packed codec: bytes by part, and KL."""
    floor = (step / 2) ** 2 if values == "sqrt" else 0.0
    train, held = (
        real.records(part, positions.vocab, k=k, floor=floor, length=DOCUMENT)
        for part in (positions.train, positions.evaluation)
    )
    prior = learn_prior(train, positions.vocab, budget=BUDGET)
    header = CodecHeader(
        codec="packed",
        vocab_size=positions.vocab,
        values=values,
        step=step if values in ("sqrt", "log") else None,
        temperatures=(),
        prior="-",
    )
    codec, rows = PackedCodec(header, prior), len(positions.evaluation.ids)
    blobs = [codec.encode(record) for record in held]
    # What no opponent stores: the log-prob of the next token and the entropy.
    extra = sum(len(pack(pack_scalars(record, header)[1:])) for record in held) / rows
    decoded = codec.decode([(b, r.rows, len(r.ids)) for b, r in zip(blobs, held, strict=True)])
    whole = sum(map(len, blobs)) / rows
    head, kept, tail = dense_rows(decoded, positions.evaluation.ids)
    return {
        "setting": f"{values} 1/{round(1 / step)}" if step else values,
        "k_at_most": k,
        "entries": round(sum(len(record.ids) for record in held) / rows, 1),
        "bytes_targets": round(whole - extra, 2),
        "bytes_with_scalars": round(whole, 2),
        "prior_bytes": len(prior.dump()),
        **judged(positions, head, kept, tail),
    }


def opponent(
    positions: real.Positions, name: str, bytes_: float, logprobs: Array
) -> dict[str, Any]:
    """Decoded log-probs [N, k] of a scheme that keeps the k best and the exact tail mass."""
    part = positions.evaluation
    k = logprobs.shape[1]
    head, kept = np.zeros(part.ids.shape), np.zeros(part.ids.shape, bool)
    head[:, :k], kept[:, :k] = np.exp(logprobs), True
    tail = np.maximum(1 - np.exp(part.logprobs[:, :k]).sum(1), 1e-6)
    over = float((head.sum(1) > 1).mean())
    return {
        "setting": name,
        "entries": k,
        "bytes_targets": round(bytes_, 2),
        "mass_above_one": round(over, 4),
        **judged(positions, head, kept, tail),
    }


def opponents(positions: real.Positions) -> list[dict[str, Any]]:
    """Every scheme of peers.py."""
    part = positions.evaluation
    rows = []
    schemes = [peers.RECOMMENDED, peers.BUDGET]
    schemes += [
        peers.Scheme(f"k {k}", k, min(16, k // 2), peers.RECOMMENDED.terms) for k in DISTILLKIT_K
    ]
    for scheme in schemes:
        values = peers.distillkit_values(scheme, part.logprobs)
        size = peers.distillkit_bytes(scheme, positions.vocab)
        rows.append(opponent(positions, f"DistillKit {scheme.name}", size, values))
    for k in (16, 32, 64, 128):
        exact = part.logprobs[:, :k].astype(np.float16).astype(np.float64)
        layouts = {
            "Megatron-LM + zstd": peers.megatron_bytes(part.ids, part.logprobs, k),
            "raw int32 + float16": peers.raw_bytes(part.ids, part.logprobs, k, zstd=False),
            "raw + zstd": peers.raw_bytes(part.ids, part.logprobs, k, zstd=True),
        }
        rows += [opponent(positions, f"{name} k {k}", b, exact) for name, b in layouts.items()]
    return rows


def bytes_at(curve: list[dict[str, Any]], kl: float, tail: str) -> float | None:
    """Bytes of our curve at a KL, between settings by log-linear interpolation."""
    points = sorted((row[f"kl_{tail}"], row["bytes_targets"]) for row in curve)
    kls, sizes = (np.log(column) for column in np.array(points).T)
    if not kls[0] <= np.log(kl) <= kls[-1]:
        return None
    return float(np.exp(np.interp(np.log(kl), kls, sizes)))


def compare(positions: real.Positions) -> dict[str, Any]:
    """Curves, opponents, and our bytes over theirs at equal KL, tail model by tail model."""
    curve = [ours(positions, "sqrt", 1 / s, real.BEST) for s in SQRT_STEPS]
    others = [ours(positions, "log", 1 / 8, k) for k in LOG_K]
    others += [ours(positions, "float16", 0.0, k) for k in LOG_K]
    rivals = opponents(positions)
    for rival in rivals:
        for tail in POWERS:
            size = bytes_at(curve, rival[f"kl_{tail}"], tail)
            if size is not None:
                rival[f"our_bytes_at_equal_kl_{tail}"] = round(size, 2)
                rival[f"ratio_{tail}"] = round(size / rival["bytes_targets"], 3)
    return {
        "vocabulary": positions.vocab,
        "mean_entropy": round(float(positions.evaluation.entropy.mean()), 3),
        "packed_sqrt": curve,
        "packed_other_grids": others,
        "opponents": rivals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=Path, action="append", required=True)
    paths = parser.parse_args().positions
    result: dict[str, Any] = {}
    for path in paths:
        name = path.parent.name if path.stem == "positions" else path.stem
        result[name] = compare(real.load(path))
    recommended = {
        name: next(r for r in part["opponents"] if r["setting"] == "DistillKit recommended")
        for name, part in result.items()
    }
    save(
        "codec",
        {
            **result,
            "ratio_to_distillkit_recommended": {
                name: rival["ratio_unigram_half"] for name, rival in recommended.items()
            },
            "target": 0.33,
            "stretch": 0.25,
        },
    )


if __name__ == "__main__":
    main()
