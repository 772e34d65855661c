"""Workers of the data loader: they change nothing, and one that dies or fails is named."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeCache, documents, record, student
from forking import Ended, Forked, command
from runs import weights
from tiny import Family
from torch.utils.data import DataLoader, get_worker_info
from transformers import TrainingArguments

from cachekd.errors import CorruptCache, WorkerError
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.trainer import DistillTrainer
from cachekd.training.workers import Reading, named_workers

# In order: how a worker ends, what is said of it, and of what to do.
ENDS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL", "memory"),
    "crashed": (lambda: ctypes.string_at(0), "was killed by SIGSEGV", "cachekd verify"),
    "no shared memory": (lambda: os.kill(os.getpid(), signal.SIGBUS), "SIGBUS", "/dev/shm larger"),
    "exited": (lambda: os._exit(7), "exited with code 7", "--dataloader-num-workers"),
}


def dying(
    monkeypatch: pytest.MonkeyPatch, at: int, end: Callable[[], Any], of: int | None = None
) -> None:
    """A worker that is to read this sample, of a dataset of this size, does something else."""
    read = CacheDataset._read

    def deadly(self: CacheDataset, indices: Sequence[int]) -> Any:
        if get_worker_info() is not None and at in indices and of in (None, len(self)):
            end()
        return read(self, indices)

    monkeypatch.setattr(CacheDataset, "_read", deadly)


def shared_names() -> set[str]:
    """What torch and multiprocessing keep in shared memory, by this process and its children."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("torch_", "sem.", "pym-"))}


def loader(count: int = 24, **further: Any) -> DataLoader[Any]:
    return DataLoader(
        CacheDataset(FakeCache([record(ids) for ids in documents(count)])),
        batch_size=4,
        num_workers=2,
        collate_fn=Collator(),
        **further,
    )


# torch raises in the handler of SIGCHLD; within a callback of the garbage collector (hypothesis
# has one) that is lost with this warning, and the loader finds the dead worker when it waits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_dies_in_a_loader_of_ones_own_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, persistent: bool
) -> None:
    end, how, advice = ENDS[kind]
    dying(monkeypatch, 13, end)
    batches = loader(persistent_workers=persistent, prefetch_factor=3)
    with pytest.raises(WorkerError) as caught, named_workers():
        for _ in batches:
            pass
    text = str(caught.value)
    assert how in text and advice in text
    # Of six batches the fourth is read by the second worker; samples 12 to 15 are in shard 2 of 5.
    assert "loader worker 1 of 2 (pid " in text
    assert "while it read samples 12, 13, 14, 15 of " in text
    assert text.count("parquet") == 2 and "memory://fake/logits/fake-2.parquet" in text
    pid = int(text.partition("(pid ")[2].partition(")")[0])
    assert not Path(f"/proc/{pid}").exists()
    monkeypatch.undo()
    with named_workers():
        assert len(list(batches if not persistent else loader())) == 6, "a new loader works at once"


def test_what_a_killed_worker_left_in_shared_memory_is_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch unlinks what it shares at once; a kill may come between."""

    def end() -> None:
        Path(f"/dev/shm/torch_{os.getpid()}_1_1").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    before = shared_names()
    dying(monkeypatch, 13, end)
    with pytest.raises(WorkerError, match="SIGKILL"), named_workers():
        list(loader())
    assert not {name for name in shared_names() - before if f"_{os.getpid()}_" in name}
    assert not [name for name in shared_names() - before if name.endswith("_1_1")]


def test_an_error_of_a_worker_keeps_its_class_and_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise CorruptCache("cache/logits/ab.parquet: expected one thing\nfound another")

    dying(monkeypatch, 13, fail)
    with pytest.raises(CorruptCache) as caught, named_workers():
        list(loader())
    assert str(caught.value) == (
        "cache/logits/ab.parquet: expected one thing\nfound another (met by loader worker 1)"
    )


def test_a_worker_without_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError

    dying(monkeypatch, 13, fail)
    text = r"loader worker 1 had no memory left\. Lower --dataloader-num-workers"
    with pytest.raises(WorkerError, match=text), named_workers():
        list(loader())


@pytest.mark.parametrize("error", [RuntimeError("of a shape"), OSError(28, "full"), EOFError()])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    batches = iter(loader())
    next(batches)
    with pytest.raises(type(error)) as caught, named_workers():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.reliability)])
def test_notes_are_seen_however_a_worker_was_started(method: str) -> None:
    reading = Reading()
    worker: Any = get_context(method).Process(target=reading.note, args=([5, 7, 11],))  # type: ignore[attr-defined]
    worker.start()
    worker.join()
    assert reading.of(worker.pid) == (True, 3, [5, 7, 11])
    assert reading.of(worker.pid + 1) == (False, 0, [])
    alone = pickle.loads(pickle.dumps(reading))
    assert alone.of(worker.pid) == (False, 0, [])


def _flags(family: Family, made: Any, out: Path, *further: object) -> tuple[object, ...]:
    return (
        "train",
        *("--cache", f"main={made.cache}", "--student", family.student, "--output-dir", out),
        *("--max-steps", 10, "--use-cpu", "true", "--per-device-train-batch-size", 2),
        *("--learning-rate", 0.01, "--save-steps", 2, "--save-total-limit", 3),
        *("--dataloader-num-workers", 2, *further),
    )


def _ended(flags: Sequence[object], folder: Path) -> Ended:
    return Forked(command(*flags), folder).end()


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("killed", ()),
        ("crashed", ("--packing",)),
        ("exited", ("--dataloader-persistent-workers", "false", "--dataloader-prefetch-factor", 5)),
        ("ended", ()),  # with code 0, which torch finds by looking
    ],
)
def test_a_run_whose_worker_dies_says_so_and_continues_to_the_same_weights(
    family: Family,
    made: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    further: tuple[object, ...],
) -> None:
    end, how, _ = ENDS.get(kind, (lambda: os._exit(0), "exited with code 0", ""))
    died = tmp_path / "died"

    def once() -> None:
        if (tmp_path / "parts" / "checkpoint-4").exists() and not died.exists():
            died.write_text(str(os.getpid()))
            end()

    before = shared_names()
    assert _ended(_flags(family, made, tmp_path / "whole", *further), tmp_path / "a").code == 0
    flags = _flags(family, made, tmp_path / "parts", *further)
    with monkeypatch.context() as patch:
        for_every = CacheDataset._read

        def deadly(self: CacheDataset, indices: Sequence[int]) -> Any:
            if get_worker_info() is not None:
                once()
            return for_every(self, indices)

        patch.setattr(CacheDataset, "_read", deadly)
        ran = _ended(flags, tmp_path / "b")
    assert ran.code == 1, ran
    assert "Traceback" not in ran.err
    said = ran.lines[-1]
    assert "cachekd: loader worker " in said and how in said
    assert f"(pid {died.read_text()})" in said and f"of {made.cache}/logits/" in said
    again = _ended((*flags, "--resume-from-checkpoint", "true"), tmp_path / "c")
    assert again.code == 0, again
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert not {name for name in shared_names() - before if died.read_text() in name}


@pytest.mark.reliability
def test_a_worker_that_dies_in_evaluation_is_named(
    family: Family, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = len(CacheDataset(str(made.heldout_cache)))
    dying(monkeypatch, held_out - 1, ENDS["killed"][0], of=held_out)
    flags = _flags(family, made, tmp_path / "out", "--eval-cache", made.heldout_cache)
    ran = _ended(flags, tmp_path / "log")
    assert ran.code == 1 and "Traceback" not in ran.err, ran
    assert f"of {made.heldout_cache}/logits/" in ran.lines[-1]


@pytest.mark.reliability
def test_corruption_that_a_worker_meets_is_told_with_exit_code_4(
    family: Family, made: Any, tmp_path: Path, copy_of: Callable[[Path, str], Path]
) -> None:
    """A page of a shard is altered after the cache was opened: whoever reads it finds out."""
    cache = copy_of(made.cache, "cache")
    shard = max((cache / "logits").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    flags = _flags(family, made, tmp_path / "out")
    flags = tuple(f"main={cache}" if flag == f"main={made.cache}" else flag for flag in flags)
    ran = _ended(flags, tmp_path / "log")
    assert ran.code == 4 and "Traceback" not in ran.err, ran
    assert shard.name in ran.lines[-1]


def test_workers_that_stay_see_the_order_of_every_epoch(tmp_path: Path) -> None:
    def weights_with(workers: int) -> torch.Tensor:
        trainer = DistillTrainer(
            model=student(double=False),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                num_train_epochs=3,
                per_device_train_batch_size=4,
                use_cpu=True,
                dataloader_num_workers=workers,
                dataloader_persistent_workers=bool(workers),
                dataloader_pin_memory=False,
                learning_rate=1e-2,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
            ),
            objective=build("kd", {}),
            train_dataset=CacheDataset(FakeCache([record(ids) for ids in documents(10)])),
            data_collator=Collator(),
        )
        trainer.train()
        return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])

    assert torch.equal(weights_with(0), weights_with(2))
