"""Make the demo's teacher: ``python -m cachekd.demo.make_teacher OUT``.

In: the training side of the demo's text (`cachekd.demo.corpus`). Out: the folder OUT with a
byte-level BPE tokenizer, a small Llama in float16 safetensors, and a README with the figures of the
run. The same Python, torch and tokenizers on one thread give the same weights.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers import LlamaForCausalLM

from cachekd.demo.corpus import split_documents
from cachekd.demo.models import make_model, make_tokenizer

BATCH = 8
EPOCHS = 16
PEAK_RATE = 3e-3
WARMUP = 50
WEIGHT_DECAY = 0.1
DROPOUT = 0.2
IGNORED = -100

README = """# The demo's teacher

A language model of about two million parameters, made from nothing for `cachekd demo` by
`python -m cachekd.demo.make_teacher OUT`. It knows how Python's manual sounds and little else.

| | |
|---|---|
{rows}

Text: the help topics that come with CPython (`pydoc_data.topics`), which are parts of the Python
documentation, (c) Python Software Foundation, under the PSF License Version 2. One topic in ten,
chosen by a checksum of its name, was held out; the epoch with the least held-out loss was kept. The
weights (float16) and the tokenizer were trained by the cachekd project on the other topics alone;
they are under the licence of cachekd.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a training run came to: the best held-out loss (nats per token) and its cost."""

    heldout_loss: float
    best_epoch: int
    steps: int
    tokens: int
    seconds: float


def fit(model: LlamaForCausalLM, train: list[list[int]], heldout: list[list[int]]) -> Outcome:
    """Train with AdamW and a cosine rate; the model ends with its best epoch by held-out loss."""
    _add_dropout(model)
    started = time.monotonic()
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    best, best_epoch, best_weights = math.inf, 0, model.state_dict()
    for epoch in range(1, EPOCHS + 1):
        _train_epoch(model, train, optimizer, schedule)
        loss = heldout_loss(model, heldout)
        print(f"epoch {epoch}: held-out loss {loss:.4f}, {time.monotonic() - started:.0f} s")
        if loss < best:
            best, best_epoch = loss, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_weights)
    return Outcome(
        heldout_loss=best,
        best_epoch=best_epoch,
        steps=steps,
        tokens=EPOCHS * sum(map(len, train)),
        seconds=time.monotonic() - started,
    )


def _train_epoch(
    model: LlamaForCausalLM,
    documents: list[list[int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    model.train()
    for ids_BT, labels_BT in _batches(documents, shuffle=True):
        torch.autograd.backward(_loss(model, ids_BT, labels_BT))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, documents: list[list[int]]) -> float:
    """Mean next-token loss over all documents, nats per token."""
    model.eval()
    total = sum(
        float(_loss(model, ids_BT, labels_BT)) * int((labels_BT[:, 1:] != IGNORED).sum())
        for ids_BT, labels_BT in _batches(documents, shuffle=False)
    )
    return total / sum(len(document) - 1 for document in documents)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0."""
    return min(step / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _add_dropout(model: LlamaForCausalLM) -> None:
    """Drop a share of what each block adds while training: the text is small, the model is not."""

    def drop(module: torch.nn.Module, _: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output_BTD, DROPOUT, module.training)

    for block in model.model.layers:
        block.self_attn.o_proj.register_forward_hook(drop)
        block.mlp.down_proj.register_forward_hook(drop)
    model.model.embed_tokens.register_forward_hook(drop)


def _loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=ids_BT).logits
    return functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
    )


def _batches(
    documents: list[list[int]], *, shuffle: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids and labels, int64 [B, T]; padding follows the text, so no mask is needed."""
    order = torch.randperm(len(documents)).tolist() if shuffle else range(len(documents))
    for start in range(0, len(documents), BATCH):
        rows = [torch.tensor(documents[i]) for i in order[start : start + BATCH]]
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        yield (
            ids_BT,
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED),
        )


def _encode(tokenizer: Any, documents: tuple[str, ...]) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in documents]


def main(folder: Path) -> None:
    """Make the tokenizer and the teacher, and save both in ``folder`` beside a README."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    split = split_documents()
    tokenizer = make_tokenizer(split.train)
    train, heldout = _encode(tokenizer, split.train), _encode(tokenizer, split.heldout)
    model = make_model(tokenizer, layers=4, width=192, heads=4, hidden=512, seed=0)
    outcome = fit(model, train, heldout)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    figures = {
        "parameters": model.num_parameters(),
        "training text": f"{len(train)} documents, {sum(map(len, train))} tokens",
        "held-out text": f"{len(heldout)} documents, {sum(map(len, heldout))} tokens",
        "steps": f"{outcome.steps} of {BATCH} documents ({EPOCHS} epochs)",
        "tokens seen": outcome.tokens,
        "held-out loss": f"{outcome.heldout_loss:.4f} nats per token, epoch {outcome.best_epoch}",
        "seconds on one CPU thread": f"{outcome.seconds:.0f}",
        "Python": platform.python_version(),
        "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    (folder / "README.md").write_text(README.format(rows=rows), encoding="utf-8")
    print(rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cachekd.demo.make_teacher OUT")
    main(Path(sys.argv[1]))
