"""Teacher tokens that on-policy training computes, beside scoring as the released code does it.

MiniLLM and DistiLLM are run here with tokens counted at the teacher's decoder. Beside them the
same text is scored as their authors' code scores it: MiniLLM's a first time for rewards, again for
the mixture's probabilities and for the monitored reward, and once in every inner epoch; DistiLLM's
live for every batch that is trained on, whoever wrote it. Sampling with the teacher mixed in costs
both alike, and is told apart.

    python benchmarks/bench_teacher_calls.py --teacher T --student S --train A.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import machine, save
from transformers import AutoModelForCausalLM

import cachekd
from cachekd.config import TrainConfig
from cachekd.rollouts import Rollout
from cachekd.rollouts.engine import Engine
from cachekd.training.on_policy import OnPolicyTrainer

BATCH, NEW, COLLECT, INNER = 16, 64, 64, 4
WAYS: dict[str, dict[str, Any]] = {
    "minillm": {"collect": COLLECT, "inner_epochs": INNER},
    "distillm": {"lmbda": 0.5, "replay": 128},
}


class Counted:
    """Tokens through the teacher's decoder, without padding: whole sequences, and single steps."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.tokens: Counter[str] = Counter()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within, every forward pass of a model of the teacher's width is counted."""
        from transformers.models.llama.modeling_llama import LlamaModel

        own = LlamaModel.forward

        def counting(model: Any, *args: Any, **kwargs: Any) -> Any:
            if model.config.hidden_size == self.width:
                mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
                kind = "sampling" if kwargs.get("use_cache") else "scoring"
                fresh = ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
                self.tokens[kind] += fresh
            return own(model, *args, **kwargs)

        LlamaModel.forward = counting
        try:
            yield
        finally:
            LlamaModel.forward = own


@contextmanager
def recorded(method: str, owner: Any, into: list[Any]) -> Iterator[None]:
    """Within, what a method returns is written down."""
    own = getattr(owner, method)

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        into.append(own(self, *args, **kwargs))
        return into[-1]

    setattr(owner, method, recording)
    try:
        yield
    finally:
        setattr(owner, method, own)


def run(args: argparse.Namespace, way: str, folder: Path) -> dict[str, Any]:
    """A run; its record."""
    return cachekd.train(
        TrainConfig(
            data=(args.train,),
            max_samples=args.samples,
            on_long="skip",
            max_length=320,
            teacher=args.teacher,
            student=args.student,
            objective=way,
            objective_options={"max_new_tokens": NEW, **WAYS[way]},
            output_dir=str(folder),
            training={
                "max_steps": args.steps,
                "per_device_train_batch_size": BATCH,
                "learning_rate": 5e-4,
                "use_cpu": True,
                "save_strategy": "no",
                "disable_tqdm": True,
            },
        )
    )


def passes(teacher: Any, documents: Sequence[Any], times: int) -> float:
    """Seconds of scoring documents so often, in batches as they come."""
    start = time.perf_counter()
    for _ in range(times):
        for at in range(0, len(documents), BATCH):
            part = [torch.tensor(ids, dtype=torch.int64) for ids in documents[at : at + BATCH]]
            ids_BT = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            ones = [torch.ones_like(ids) for ids in part]
            mask_BT = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
            with torch.no_grad():
                logits = teacher(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
                torch.log_softmax(logits.float(), -1)
    return time.perf_counter() - start


def compared(args: argparse.Namespace, way: str, teacher: Any) -> dict[str, Any]:
    """Tokens a step, ours and as the released code would have it, on the same text."""
    ours, theirs = Counted(teacher.config.hidden_size), Counted(teacher.config.hidden_size)
    made: list[list[Rollout]] = []
    batches: list[list[Any]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        ours(),
        recorded("make", Engine, made),
        recorded("_records", OnPolicyTrainer, batches),
    ):
        report = run(args, way, Path(scratch) / "out")
    if way == "minillm":
        documents, times = [r.input_ids for part in made for r in part], 3 + INNER
    else:
        documents, times = [r.input_ids for part in batches for r in part], 1
    with theirs():
        seconds = passes(teacher, documents, times)
    steps, scores = report["steps"], report["rollouts"]["scores"]
    return {
        "way": way,
        "steps": steps,
        "sequences written": report["rollouts"]["rollouts"],
        "ours, tokens a step": round(ours.tokens["scoring"] / steps, 1),
        "released code, tokens a step": round(theirs.tokens["scoring"] / steps, 1),
        "ratio of tokens": round(ours.tokens["scoring"] / theirs.tokens["scoring"], 4),
        "ours, seconds a step": round(scores["seconds_teacher"] / steps, 4),
        "released code, seconds a step": round(seconds / steps, 4),
        "ratio of seconds": round(scores["seconds_teacher"] / seconds, 4),
        "sampling with the teacher, tokens a step": round(ours.tokens["sampling"] / steps, 1),
        "reported teacher_tokens": scores["teacher_tokens"],
        "counted scoring tokens": ours.tokens["scoring"],
    }


def main() -> None:
    """Run both, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--samples", type=int, default=256, help="of which batches are drawn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    rows = [compared(args, way, teacher) for way in WAYS]
    save("teacher_calls", {"machine": machine(), "batch": BATCH, "table": rows})


if __name__ == "__main__":
    main()
