"""Train a small real teacher with a vocabulary of 50 257, for the benchmarks of codec and capture.

A 4-layer Llama-style model on the texts and instruction sets of a data folder, with the GPT-2
tokenizer that lies there. Nothing of it is shipped: it stands in for a large model where the size
of the vocabulary matters. Prints its held-out loss.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TEXTS = ("text-lm/wikitext2_valid.txt", "text-lm/sherlock.txt", "text-lm/grimm.txt")
ROWS = (
    "gsm8k/train.jsonl",
    "ecommerce-cucom/train.jsonl",
    "dolly-subset/dolly_train.jsonl",
    "selfinst-252/test.jsonl",
    "sni-tasks/train.jsonl",
)
HELD_OUT = 60_000
LENGTH, ROWS_PER_STEP = 256, 16


def strings(value: object) -> Iterator[str]:
    """All texts within a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def corpus(root: Path) -> list[str]:
    """Documents of all sources, in an order that mixes them."""
    documents = []
    for name in TEXTS:
        text = (root / name).read_text(encoding="utf-8")
        documents += [text[i : i + 4000] for i in range(0, len(text), 4000)]
    for name in ROWS:
        for line in (root / name).open(encoding="utf-8"):
            documents.append("\n".join(strings(json.loads(line))))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    return [documents[i] for i in order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    folder = arguments.data_root / "tokenizers/gpt2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = corpus(arguments.data_root)
    ids = [i for text in documents for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    data = torch.tensor(ids, dtype=torch.long)
    held, data = data[:HELD_OUT], data[HELD_OUT:]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95))
    begun, step, tokens = time.monotonic(), 0, 0
    seconds = 60 * arguments.minutes
    while (spent := time.monotonic() - begun) < seconds:
        starts = torch.randint(len(data) - LENGTH - 1, (ROWS_PER_STEP,))
        rows = torch.stack([data[s : s + LENGTH] for s in starts])
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - spent / seconds)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + rows.numel()
        if step % 50 == 0:
            print(f"step {step}, {tokens:,} tokens, loss {loss.item():.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        rows = held[: HELD_OUT // LENGTH * LENGTH].view(-1, LENGTH)
        losses = [model(input_ids=part, labels=part).loss.item() for part in rows.split(16)]
    model.save_pretrained(arguments.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, arguments.out / name)
    print(f"{tokens:,} tokens trained; held-out loss {sum(losses) / len(losses):.3f} nats")


if __name__ == "__main__":
    main()
