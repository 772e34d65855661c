"""Caches in memory and targets from dense logits: what training and losses are tested with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cachekd.store.collected import collect
from cachekd.store.identity import Identity
from cachekd.store.samples import SampleTable, read_samples, write_samples
from cachekd.types import AttentionRows, Record, Role, Sample, TargetTensors, TopKLogits

VOCAB = 48
CONTEXT = 64


def sparse(
    teacher_NV: Tensor, *, top_p: float = 1.0, temperatures: Sequence[float] = (1.0, 2.0)
) -> TargetTensors:
    """Exact ragged targets in float64: the smallest head that holds ``top_p``, best first."""
    log_p = torch.log_softmax(teacher_NV.double(), -1)
    values, order = log_p.sort(-1, descending=True)
    before = values.exp().cumsum(-1) - values.exp()
    keep = before < top_p if top_p < 1 else torch.ones_like(before, dtype=torch.bool)
    counts = keep.sum(-1)
    rest = torch.where(keep, torch.full_like(values, -torch.inf), values)
    norms = {float(t): torch.logsumexp(log_p / t, -1) for t in temperatures}
    zeros = torch.zeros(len(counts), dtype=torch.float64)
    return {
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        "ids": order[keep],
        "logprobs": values[keep],
        "tail": torch.logsumexp(rest, -1),
        "next_ids": order[:, 0],
        "next_logprob": zeros,
        "entropy": zeros,
        "weights": zeros + 1,
        "lognorm": norms,
    }


def topk_logits(targets: TargetTensors, vocab: int) -> TopKLogits:
    """The same as a record holds it, in float32."""

    def single(tensor: Tensor) -> Any:
        return tensor.numpy().astype(np.float32)

    return TopKLogits(
        offsets=targets["offsets"].numpy(),
        ids=targets["ids"].numpy().astype(np.int32),
        logprobs=single(targets["logprobs"]),
        weights=None,
        tail=single(targets["tail"]),
        next_logprob=single(targets["next_logprob"]),
        lognorm={t: single(values) for t, values in targets["lognorm"].items()},
        entropy=single(targets["entropy"]),
        vocab_size=vocab,
    )


def teacher_of(ids: Sequence[int], vocab: int = VOCAB, width: float = 3.0) -> Tensor:
    """Teacher logits of a document, [L-1, V]: a function of its tokens, different in every row."""
    seed = int.from_bytes(blake2b(bytes(str(list(ids)), "ascii"), digest_size=7).digest(), "big")
    generator = torch.Generator().manual_seed(seed)
    rows = len(ids) - 1
    return torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * width


def record(
    ids: Sequence[int],
    *,
    prompt_length: int | None = None,
    weight: float = 1.0,
    top_p: float = 1.0,
    vocab: int = VOCAB,
    domain: str = "",
    shift: int = 0,
) -> Record:
    """A record of plain text, or of a prompt and its completion; `shift` is another teacher."""
    tokens = np.array(ids, np.int32)
    roles = np.full(len(tokens), Role.TEXT, np.uint8)
    if prompt_length is not None:
        roles[:prompt_length], roles[prompt_length:] = Role.USER, Role.ASSISTANT
    key = blake2b(tokens.tobytes(), digest_size=16).digest()
    return Record(
        key=key,
        sample_id=blake2b(
            key + str((prompt_length, weight, domain)).encode(), digest_size=16
        ).digest(),
        input_ids=tokens,
        roles=roles,
        prompt_length=prompt_length,
        domain=domain,
        weight=weight,
        logits=topk_logits(sparse(teacher_of(ids, vocab).roll(shift, 1), top_p=top_p), vocab),
    )


def documents(count: int, seed: int = 0, longest: int = 24, vocab: int = VOCAB) -> list[list[int]]:
    """Token ids of random documents of different lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, count)
    return [random.integers(0, vocab, length).tolist() for length in lengths]


def without_targets(item: Record, rows: int) -> Record:
    """A record whose first rows were not captured."""
    full = item.logits
    cut = int(full.offsets[rows])
    logits = replace(
        full,
        offsets=np.maximum(full.offsets - cut, 0),
        ids=full.ids[cut:],
        logprobs=full.logprobs[cut:],
    )
    return replace(item, logits=logits)


class FakeCache:
    """An opened cache that lives in memory."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        name: str = "fake",
        capture_id: str = "capture",
        tokenizer: str = "tokenizer",
        rows: str = "all",
        vocab: int = VOCAB,
        kind: str = "top_p",
        unigram: Any = None,
        provenance: Mapping[str, Any] = MappingProxyType({}),
        **source: Any,
    ) -> None:
        self.name, self.url = name, f"memory://{name}"
        self.sealed, self.root = True, "root"
        self.held_bytes = 0  # nothing of it is fetched
        self.skipped: Mapping[bytes, tuple[int, ...]] = {}
        self.records = list(records)
        self._unigram = unigram
        self.totals: dict[str, int] = {"samples": len(records)}
        self.sample_ids = [item.sample_id for item in records]
        self.lengths = np.array([len(item.input_ids) for item in records], np.int32)
        self.identity = Identity(
            source_id="source",
            source={"tokenizer": tokenizer, "vocab_size": vocab, **source},
            capture_id=capture_id,
            capture={"temperatures": [1.0, 2.0], "rows": rows, "selection": {"kind": kind}},
            provenance=provenance,
        )

    @cached_property
    def samples(self) -> SampleTable:
        samples = [
            Sample(
                input_ids=item.input_ids,
                roles=item.roles,
                prompt_length=item.prompt_length,
                domain=item.domain,
                weight=item.weight,
            )
            for item in self.records
        ]
        keys = [item.key for item in self.records]
        data = write_samples(samples, keys, self.sample_ids, range(len(keys)))
        return collect([(read_samples("fake", data), False)])

    def shards_of(self, numbers: Any) -> Any:
        """Five samples a shard, in the order of the cache."""
        count = -(-len(self.records) // 5)
        return [f"{self.name}-{i}" for i in range(count)], np.asarray(numbers, np.int64) // 5

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Record:
        return self.records[i]

    def unigram(self) -> Any:
        return self._unigram

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return [self.records[i] for i in numbers]

    def roles(self, i: int) -> Any:
        return self.records[i].roles, self.records[i].prompt_length


def student(seed: int = 0, *, double: bool = True, padded_vocab: int = 8, **changes: Any) -> Any:
    """A tiny Llama with an embedding larger than the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB + padded_vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **changes,
    )
    model = LlamaForCausalLM(config)
    return model.double() if double else model


def attention_maps(length: int, heads: int, layers: int, window: int | None = None) -> Tensor:
    """Random causal maps of a document with this many rows, float64 [A, H, R, R]."""
    generator = torch.Generator().manual_seed(length)
    shape = (layers, heads, length, length)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        seen &= ~seen.tril(-window)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def with_attention(
    item: Record,
    *,
    layers: Sequence[int] = (0, 1),
    heads: int = 2,
    most: int | None = None,
    rows: Sequence[int] | None = None,
    weight: float = 1.0,
    window: int | None = None,
) -> Record:
    """A record with the attention of `attention_maps`, all keys of a row or the most probable."""
    length = len(item.input_ids) - 1
    maps = attention_maps(length, heads, len(layers), window).numpy()
    at = np.arange(length) if rows is None else np.array(rows, np.int64)
    maps_AHRL = maps[:, :, at]
    order = (-maps_AHRL).argsort(-1, kind="stable").argsort(-1)
    kept = (order < (most or length)) & (np.arange(length) <= at[:, None])
    attention = AttentionRows(
        layers=np.array(layers, np.int32),
        heads=np.arange(heads, dtype=np.int32),
        rows=at.astype(np.int32),
        weights=np.full(len(at), weight, np.float32),
        offsets=np.concatenate([[0], kept.sum(-1).ravel().cumsum()]).astype(np.int64),
        keys=kept.nonzero()[-1].astype(np.int32),
        probs=maps_AHRL[kept].astype(np.float32),
        rest=np.where(kept, 0, maps_AHRL).sum(-1).astype(np.float32),
        length=length,
    )
    return replace(item, attention=attention)
