"""Tiny tokenizers and chat templates, built in the process."""

from __future__ import annotations

from datetime import datetime

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cachekd.config import DataConfig

TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a little girl named Lily, who loved the rain.",
    "### Instruction:\nName a fruit.\n\n### Response:\nAn apple is a fruit.",
    "What is 12 + 30? It is 42.\n\nYes, it is 42.\n",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIMPLE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "simple": SIMPLE, "llama2": LLAMA2}


def _train(add_bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return tokenizer


def make_tokenizer(*, template=None, eos="</s>", affixes=False):
    return PreTrainedTokenizerFast(
        tokenizer_object=_train(affixes),
        bos_token="<s>",
        eos_token=eos,
        extra_special_tokens=SPECIAL[2:],
        chat_template=template,
    )


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE without a chat template; it adds no special token by itself."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def affix_tokenizer():
    """As `tokenizer`, but it puts BOS before and EOS behind every text."""
    return make_tokenizer(affixes=True)


@pytest.fixture(scope="session")
def no_eos_tokenizer():
    return make_tokenizer(eos=None)


@pytest.fixture(scope="session")
def templates():
    return TEMPLATES


@pytest.fixture(scope="session")
def chat_tokenizer():
    return make_tokenizer(template=CHATML)


@pytest.fixture(scope="session")
def clock():
    return datetime(2024, 7, 5, 9, 3, 1)


@pytest.fixture(scope="session")
def settings():
    """A `DataConfig` with other values."""

    def make(**values):
        return DataConfig(**{"data": ("file.jsonl",), **values})

    return make
