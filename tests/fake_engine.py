"""A module ``vllm`` with the habits of the real one in process, which computes with transformers.

What it keeps of the real one (0.33): arguments that it does not know are errors; ``max_logprobs``
is 20 unless raised, -1 is the vocabulary; prompts are token ids where no tokenizer was loaded, and
leave room for a token; ``prompt_logprobs`` is None at the first place, of each other the prompt's
own token and then the k best, which may hold it again; ranks count from 1. It takes the first of
the GPUs that it sees, and its workers meet in a group of their own, which they open at a free port.
"""

from __future__ import annotations

import importlib.machinery
import os
import socket
import sys
import types
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

VERSION = "0.33.0"


class FlatLogprobs:
    """Entries of all places, one after another. What is read of it are new lists: some versions
    keep lists, later ones arrays of which they make lists.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.ids: list[int] = []
        self.values: list[float] = []
        self.places: list[int] = []

    def add(self, ids: list[int], logs: list[float], ranks: list[int]) -> None:
        self.ids += ids
        self.values += logs
        self.places += ranks
        self.ends.append(len(self.ids))

    @property
    def start_indices(self) -> list[int]:
        return [0, *self.ends][: len(self.ends)]

    @property
    def end_indices(self) -> list[int]:
        return list(self.ends)

    @property
    def token_ids(self) -> list[int]:
        return list(self.ids)

    @property
    def logprobs(self) -> list[float]:
        return list(self.values)

    @property
    def ranks(self) -> list[int]:
        return list(self.places)

    @property
    def decoded_tokens(self) -> list[str | None]:
        return [None] * len(self.ids)


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: FlatLogprobs | None


class LLM:
    """The engine; ``made`` are all that were started, ``fail`` is raised by each request."""

    made: ClassVar[list[LLM]] = []
    fail: ClassVar[Exception | None] = None

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        max_logprobs: int = 20,
        logprobs_mode: str = "raw_logprobs",
        enable_prefix_caching: bool = True,
        seed: int = 0,
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model)
        longest = config.max_position_embeddings
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(
                f"User-specified max_model_len ({max_model_len}) is greater than the derived "
                f"max_model_len (max_position_embeddings={longest})."
            )
        if config.model_type not in ("llama", "qwen2"):
            raise ValueError(
                f"Model architectures {config.architectures} are not supported for now."
            )
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must be greater than or equal to max_num_seqs")
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.devices = None if seen is None else seen.split(",")[:tensor_parallel_size]
        _meet()
        self.longest = max_model_len or longest
        self.vocab = config.vocab_size
        self.most = self.vocab if max_logprobs == -1 else max_logprobs
        self.prefixes = enable_prefix_caching
        self.tokenizer = not skip_tokenizer_init
        self.model = AutoModelForCausalLM.from_pretrained(
            Path(model), dtype=getattr(torch, dtype)
        ).eval()
        LLM.made.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        if LLM.fail is not None:
            raise LLM.fail
        count = sampling_params.prompt_logprobs
        if count is not None and count > self.most:
            raise ValueError(
                f"Requested prompt logprobs of {count}, which is greater than max allowed: "
                f"{self.most}"
            )
        assert sampling_params.flat_logprobs and not self.tokenizer
        assert not sampling_params.detokenize and sampling_params.max_tokens == 1
        return [self._one(prompt["prompt_token_ids"], count or 0) for prompt in prompts]

    def _one(self, ids: list[int], count: int) -> RequestOutput:
        import torch

        if len(ids) >= self.longest:
            more = " plus the number of requested output tokens (at least 1)"
            raise ValueError(
                f"The decoder prompt (length {len(ids)}){more if len(ids) == self.longest else ''} "
                f"is longer than the maximum model length of {self.longest}."
            )
        if max(ids) >= self.vocab:
            raise ValueError(f"Token id {max(ids)} is out of vocabulary")
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        flat = FlatLogprobs()
        flat.add([], [], [])
        for row, next_id in zip(logits.float().log_softmax(-1), ids[1:], strict=True):
            best = row.topk(count)
            own = row[next_id]
            flat.add(
                [next_id, *best.indices.tolist()],
                [own.item(), *best.values.tolist()],
                [int((row >= own).sum()), *range(1, count + 1)],
            )
        return RequestOutput(ids, flat)


def _meet() -> None:
    """A worker that meets itself; nobody else serves the address."""
    from torch.distributed import rendezvous

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}?rank=0&world_size=1"
    next(iter(rendezvous(address, timeout=timedelta(seconds=2))))


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Put the module where the real one would be, for the length of a test."""
    module: Any = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.__version__ = VERSION
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "fail", None)
    return LLM
