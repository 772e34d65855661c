"""The student's text of earlier steps: a buffer to draw from, and files of it.

In: `Rollout`s. Out: the same, to the bit. A buffer drops the oldest when it is full (DistiLLM,
capacity 1000). A file is a safetensors container of flat arrays, those of one response after those
of another, with a sha256 of all that it says; it replaces an older one whole or not at all.

A token takes 8 bytes for each entry of the teacher's row, 20 + 4 T beside them (id, number of
entries, tail, log-probability of the next token, entropy, T log-normalisers), and of a response 12
more (old and behaviour log-probability, advantage): with 64 entries at temperature 1, 548 bytes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import canonical_json
from cachekd.data.digests import bytes_digest
from cachekd.errors import ConfigError, CorruptCache
from cachekd.rollouts import Rollout
from cachekd.rollouts.coins import bits
from cachekd.store.io import Location
from cachekd.store.tensors import dump_tensors, load_tensors
from cachekd.types import Int64, TopKLogits

_FORMAT = "cachekd rollouts 1"
_ROWS = ("tail", "next_logprob", "entropy")
_POLICY = ("old_logprob", "behaviour_logprob", "advantage")
_Arrays = Mapping[str, NDArray[Any]]


class ReplayBuffer:
    """The last ``capacity`` rollouts of a process, first in, first out."""

    def __init__(self, capacity: int) -> None:
        self._held: deque[Rollout] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._held)

    def push(self, rollouts: Sequence[Rollout]) -> None:
        """Take these in; the oldest go where there is no room."""
        self._held.extend(rollouts)

    def draw(self, count: int, seed: int, step: int) -> list[Rollout]:
        """So many different ones, uniformly: a function of seed, step and what is held.

        Raises:
            ConfigError: it does not hold so many.
        """
        if count > len(self._held):
            raise ConfigError(
                f"replay: expected {count} sequences to draw from; found {len(self._held)}. Write "
                "fresh text first"
            )
        order = np.argsort(bits(seed, step, np.arange(len(self._held))), kind="stable")
        return [self._held[place] for place in order[:count]]

    def held(self) -> list[Rollout]:
        """All of them, the oldest first."""
        return list(self._held)


def save_rollouts(rollouts: Sequence[Rollout], path: Path) -> None:
    """Write rollouts of one teacher to a file, in place of an older one.

    Raises:
        StoreError: the file cannot be written.
    """
    vocab_sizes = {rollout.logits.vocab_size for rollout in rollouts}
    temperatures = {tuple(sorted(rollout.logits.lognorm)) for rollout in rollouts}
    assert max(len(vocab_sizes), len(temperatures)) <= 1, "one teacher has scored them"
    assert all(rollout.logits.weights is None for rollout in rollouts), "heads are exact"
    named = next(iter(temperatures), ())
    arrays = _arrays(rollouts, named)
    facts = {
        "format": _FORMAT,
        "vocab_size": next(iter(vocab_sizes), 0),
        "temperatures": named,
    }
    text = canonical_json(facts)
    data = dump_tensors(arrays, {"rollouts": text, "digest": _digest(arrays, text)})
    Location(str(path.parent)).replace(path.name, data)


def load_rollouts(path: Path) -> list[Rollout]:
    """The rollouts of a file.

    Raises:
        CorruptCache: it is missing, damaged, or no file of rollouts.
    """
    try:
        if not path.is_file():
            raise CorruptCache("there is no such file")
        arrays, metadata = load_tensors(Location(str(path.parent)).map(path.name))
        text = metadata.get("rollouts", "")
        if metadata.get("digest") != _digest(arrays, text):
            raise CorruptCache("its content is not what was written")
        facts = json.loads(text)
        if facts["format"] != _FORMAT:
            raise CorruptCache(f"expected format {_FORMAT!r}, found {facts['format']!r}")
        return _rollouts(arrays, int(facts["vocab_size"]), facts["temperatures"])
    except (CorruptCache, KeyError, ValueError, TypeError) as error:
        raise CorruptCache(
            f"{path}, rollouts of a checkpoint, cannot be read: {error}. Resume from another "
            "checkpoint"
        ) from error


def _digest(arrays: _Arrays, text: str) -> str:
    parts = [
        f"{name} {arrays[name].dtype.str} {arrays[name].shape} {bytes_digest(arrays[name])}"
        for name in sorted(arrays)
    ]
    return bytes_digest("\n".join([text, *parts]).encode())


def _arrays(rollouts: Sequence[Rollout], temperatures: Sequence[float]) -> _Arrays:
    """Flat arrays of all rollouts; float32 by its bits, which containers here hold as int32."""
    logits = [rollout.logits for rollout in rollouts]

    def flat(dtype: str, parts: list[Any]) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)

    def bits_of(parts: list[Any]) -> NDArray[Any]:
        return flat("<f4", parts).view("<i4")

    rows = [[getattr(own, name) for own in logits] for name in _ROWS]
    rows += [[own.lognorm[temperature] for own in logits] for temperature in temperatures]
    policy = [[getattr(rollout, name) for rollout in rollouts] for name in _POLICY]
    return {
        "documents": np.array([_document(rollout) for rollout in rollouts], "<i8").reshape(-1, 5),
        "corrections": flat("<i8", [rollout.corrections for rollout in rollouts]),
        "input_ids": flat("<i4", [rollout.input_ids for rollout in rollouts]),
        "counts": flat("<i4", [np.diff(own.offsets) for own in logits]),
        "ids": flat("<i4", [own.ids for own in logits]),
        "logprobs": bits_of([own.logprobs for own in logits]),
        "rows": np.stack([bits_of(parts) for parts in rows]),
        "policy": np.stack([bits_of(parts) for parts in policy]),
    }


def _document(rollout: Rollout) -> tuple[int, ...]:
    lengths = (rollout.prompt_length, len(rollout.input_ids), len(rollout.corrections))
    return (rollout.sample, rollout.number, *lengths)


def _rollouts(arrays: _Arrays, vocab_size: int, temperatures: Sequence[float]) -> list[Rollout]:
    documents_N5, counts_R = arrays["documents"], arrays["counts"].astype(np.int64)
    prompts_N, lengths_N, corrected_N = documents_N5.T[2:]
    if (prompts_N < 1).any() or (lengths_N <= prompts_N).any() or (counts_R < 0).any():
        raise CorruptCache("a document without prompt or response, or a row of negative size")
    if not ((arrays["ids"] >= 0) & (arrays["ids"] < vocab_size)).all():
        raise CorruptCache(f"ids outside a vocabulary of {vocab_size}")
    rows_N = lengths_N - 1
    counts = _cut("counts", counts_R, rows_N)
    entries_N = np.array([own.sum() for own in counts], np.int64)
    parts = {
        "input_ids": _cut("input_ids", arrays["input_ids"], lengths_N),
        "ids": _cut("ids", arrays["ids"], entries_N),
        "logprobs": _cut("logprobs", arrays["logprobs"].view("<f4"), entries_N),
        "rows": _cut("rows", arrays["rows"].view("<f4"), rows_N),
        "policy": _cut("policy", arrays["policy"].view("<f4"), lengths_N - prompts_N),
        "corrections": _cut("corrections", arrays["corrections"], corrected_N),
        "counts": counts,
    }
    return [
        _rollout(facts, {name: own[i] for name, own in parts.items()}, vocab_size, temperatures)
        for i, facts in enumerate(documents_N5.tolist())
    ]


def _cut(name: str, flat: NDArray[Any], sizes_N: Int64) -> list[NDArray[Any]]:
    """Copies of the parts of these sizes, along the last axis."""
    if flat.shape[-1] != sizes_N.sum() or (sizes_N < 0).any():
        raise CorruptCache(f"{name}: expected {sizes_N.sum()} values, found {flat.shape[-1]}")
    return [part.copy() for part in np.split(flat, np.cumsum(sizes_N)[:-1], axis=-1)]


def _rollout(
    facts: Sequence[int], part: _Arrays, vocab_size: int, temperatures: Sequence[float]
) -> Rollout:
    sample, number, prompt_length, _, _ = facts
    tail, next_logprob, entropy, *lognorms = part["rows"]
    old_logprob, behaviour_logprob, advantage = part["policy"]
    logits = TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(part["counts"])]).astype(np.int64),
        ids=part["ids"],
        logprobs=part["logprobs"],
        weights=None,
        tail=tail,
        next_logprob=next_logprob,
        lognorm={float(t): norm for t, norm in zip(temperatures, lognorms, strict=True)},
        entropy=entropy,
        vocab_size=vocab_size,
    )
    return Rollout(
        sample=sample,
        number=number,
        input_ids=part["input_ids"],
        prompt_length=prompt_length,
        logits=logits,
        old_logprob=old_logprob,
        behaviour_logprob=behaviour_logprob,
        advantage=advantage,
        corrections=tuple(part["corrections"].tolist()),
    )
