"""Tiny models, tokenizers and data, made in the process: no network, nothing downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = (
    "the a small red blue old fast river mountain house cat dog bird tree stone road light "
    "runs sleeps sings falls grows waits under over near behind with without and but then"
).split()
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def sentence(number: int) -> str:
    """A made-up sentence, another for every number; lengths differ."""
    state = number * 2654435761 % (1 << 32)
    words = []
    for _ in range(3 + state % 17):
        state = (state * 1103515245 + 12345) % (1 << 31)
        words.append(WORDS[state // 7 % len(WORDS)])
    return f"{' '.join(words)} {number}."


def chat_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the instruction layout."""
    return [
        {"instruction": sentence(2 * i), "output": sentence(2 * i + 1)}
        for i in range(first, first + count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Maker = Callable[..., dict[str, Any]]


def maker(family: Family, folder: Path) -> Maker:
    """``make(url, rows, **settings)`` makes or continues a cache of the dummy teacher."""
    import cachekd
    from cachekd import PrecomputeConfig

    def make(url: object, rows: list[dict[str, Any]], /, **further: Any) -> dict[str, Any]:
        data = write_rows(folder / "data.jsonl", rows)
        settings = {"logits_top_k": 8, "threads": 1, "unit_tokens": 80, "batch_tokens": 80}
        return cachekd.precompute(
            PrecomputeConfig(
                teacher=str(family.teacher),
                backend="dummy",
                data=(str(data),),
                cache=str(url),
                **{**settings, **further},
            )
        )

    return make


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE with a chat template; returns its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentence(i) for i in range(200)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_model(
    folder: Path, vocab: int, *, width: int, layers: int, seed: int, kv_heads: int = 1
) -> None:
    """A random tiny Llama whose logits are far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_mixture(folder: Path, vocab: int, *, kind: str, width: int = 32, seed: int = 0) -> None:
    """A random tiny mixture of 8 experts, 2 of which a token is sent to: mixtral or qwen3_moe."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = {"num_local_experts": 8} if kind == "mixtral" else {"num_experts": 8, "head_dim": 16}
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **sizes,
    )
    config.moe_intermediate_size = width
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@dataclass(frozen=True)
class Family:
    """A teacher and a student with one tokenizer."""

    teacher: Path
    student: Path
    vocab: int


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value
