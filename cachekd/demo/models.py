"""The tokenizer and the models of the demo: both small enough for minutes on a CPU.

In: documents, or a tokenizer and sizes. Out: a byte-level BPE tokenizer, or a Llama with random
weights, the same for the same seed.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
VOCAB_SIZE = 2048
CONTEXT = 256


def make_tokenizer(documents: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `VOCAB_SIZE` entries; any text can be encoded, so no unk."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
    )


def make_model(
    tokenizer: Any, *, layers: int, width: int, heads: int, hidden: int, seed: int
) -> LlamaForCausalLM:
    """A small Llama with random weights for this tokenizer, float32.

    Args:
        tokenizer: gives the vocabulary and the special ids.
        layers: number of transformer blocks.
        width: width of the residual stream.
        heads: attention heads; half as many key-value heads.
        hidden: width of the feed-forward part.
        seed: of the weights; the same seed gives the same model.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
