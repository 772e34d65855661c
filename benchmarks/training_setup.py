"""What the benchmarks of training run on: documents, a student, teachers, and caches of them.

In: sizes. Out: random-weights models, token ids, and caches that `precompute` itself has written.
All documents are of one length, so that every step trains as many tokens as another.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 128
SHARPNESS = 4.0
"""Standard deviation of a teacher's logits: a few hundred tokens then matter at a position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Vocabulary, tokens of a step, and steps for which there are documents."""

    vocab: int
    tokens: int
    steps: int

    @property
    def rows(self) -> int:
        """Documents of a step."""
        return self.tokens // LENGTH


def student(vocab: int) -> LlamaForCausalLM:
    """4 layers, width 256, embedding and head tied, as small models have them."""
    return _llama(vocab, width=256, layers=4, inner=1024, seed=0, tied=True)


def teacher(vocab: int, times: int) -> LlamaForCausalLM:
    """A teacher with about ``times`` the parameters of body and head of the student."""
    width, layers = _TEACHERS[(vocab > 65_536, times)]
    model = _llama(vocab, width=width, layers=layers, inner=4 * width, seed=1, tied=False)
    torch.nn.init.normal_(model.lm_head.weight, std=SHARPNESS / math.sqrt(width))
    return model.eval().requires_grad_(False)


_TEACHERS = {
    (False, 1): (64, 1),
    (True, 1): (64, 1),
    (False, 4): (512, 8),
    (False, 10): (768, 11),
    (True, 4): (768, 5),
}
"""Width and layers; 1 is for what needs a cache and no live teacher."""


def counted(model: Any) -> int:
    """Parameters of body and head: what a token's forward multiplies with."""
    body = sum(p.numel() for p in model.model.layers.parameters())
    return body + model.lm_head.weight.numel()


def shared(model: Any) -> Any:
    """A copy of the modules over the same parameters, for a trainer that wraps or changes them."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def documents(sizes: Sizes) -> list[list[int]]:
    """Random token ids; id 0 ends texts and is left out."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, sizes.vocab, (sizes.steps * sizes.rows, LENGTH))
    rows: list[list[int]] = ids.tolist()
    return rows


def tokenizer(vocab: int) -> Any:
    """Words ``t0``, ``t1``, ... one for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", pad_token="t1")


SELECTIONS: dict[str, dict[str, Any]] = {
    "k64": {"logits_selection": "top_k", "logits_top_k": 64},
    "sqrt": {
        "logits_selection": "top_p",
        "logits_top_p": 0.9,
        "logits_top_k": 200,
        "logits_values": "sqrt",
    },
}


def write_caches(
    folder: Path, sizes: Sizes, times: int, names: tuple[str, ...], **further: Any
) -> None:
    """Capture each selection of a teacher into ``folder/<name>``."""
    from cachekd import PrecomputeConfig
    from cachekd.capture import precompute

    data, saved = folder / "data.jsonl", folder / "teacher"
    data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in documents(sizes)))
    teacher(sizes.vocab, times).save_pretrained(saved)
    tokenizer(sizes.vocab).save_pretrained(saved)
    for name in names:
        precompute(
            PrecomputeConfig(
                teacher=str(saved),
                data=(str(data),),
                cache=str(folder / name),
                temperatures=(1.0,),
                max_length=LENGTH,
                batch_tokens=1024,
                threads=1,
                writers=0,
                **SELECTIONS[name],
                **further,
            )
        )


def _llama(
    vocab: int, *, width: int, layers: int, inner: int, seed: int, tied: bool
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=max(width // 64, 1),
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
            tie_word_embeddings=tied,
        )
    )
