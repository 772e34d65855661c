"""A small capture that is killed, or whose disk fails, at any operation; and how it must end.

Everything runs in forked children of one quiet process: no thread, torch and tokenizer loaded
once, the teacher's numbers remembered. A child installs a tripwire on `cachekd.store.disk` and runs
the same command as everybody. After every fault the same command must end in the same cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import chat_rows, save_tokenizer, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import CachekdError
from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.store.layout import CARD
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.teachers.dummy import DummyTeacher

CHANGES = (
    "make_folder", "open_new", "write", "write_at", "cut", "sync", "link", "rename", "unlink",
    "remove_folder", "open_lock",
)  # fmt: skip
VOCAB = 320


@dataclass(frozen=True, slots=True)
class Workload:
    """A command that can be run into any folder."""

    teacher: Path
    data: Path
    unit_tokens: int

    def run(self, cache: Path) -> None:
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(self.teacher),
                backend="dummy",
                data=(str(self.data),),
                cache=str(cache),
                threads=1,
                unit_tokens=self.unit_tokens,
                batch_tokens=100,
                writers=0,
                logits_top_k=8,
            )
        )


def make_workload(root: Path, rows: int, unit_tokens: int = 200) -> Workload:
    """A teacher's folder and data; its numbers are scored once for all children."""
    teacher = root / "teacher"
    save_tokenizer(teacher)
    settings = {"model_type": "llama", "vocab_size": VOCAB, "max_position_embeddings": 128}
    (teacher / "config.json").write_text(json.dumps(settings))
    remember_scores()
    return Workload(teacher, write_rows(root / "data.jsonl", chat_rows(rows)), unit_tokens)


def remember_scores() -> None:
    """Each batch is scored once, then told from memory."""
    score, known = DummyTeacher.score, {}

    def told(self: DummyTeacher, documents: Any, *args: Any, **further: Any) -> Any:
        key = (*(ids.tobytes() for ids in documents), repr(args), repr(further))
        if key not in known:
            known[key] = score(self, documents, *args, **further)
        return known[key]

    DummyTeacher.score = told  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: exit code (negative: the signal), its error and operations so far."""

    code: int
    error: str
    changes: tuple[str, ...]


def start(act: Callable[[], None]) -> tuple[int, int]:
    """Run this in a forked child; its process id and the pipe of its last words."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    code, error = 0, ""
    try:
        act()
    except CachekdError as found:
        code, error = found.exit_code, f"{type(found).__name__}: {found}"
    except BaseException as found:  # nothing else may come through
        code, error = 99, f"{type(found).__name__}: {found}"
    os.write(writes, json.dumps([error, LOG]).encode())
    os._exit(code)


def ended(child: int, reads: int) -> Ended:
    """Wait for a child."""
    with os.fdopen(reads, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    error, log = json.loads(said) if said else ("", [])
    return Ended(os.waitstatus_to_exitcode(status), error, tuple(log))


def forked(act: Callable[[], None]) -> Ended:
    """Run this in a child and wait for it."""
    return ended(*start(act))


LOG: list[str] = []


def trip(act: Callable[[str, int, tuple[Any, ...]], None]) -> None:
    """Call ``act`` before each change of the disk: its name, its number from 1, its arguments."""

    def wrap(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            LOG.append(name)
            act(name, len(LOG), args)
            return whole(*args)

        return step

    for name in CHANGES:
        setattr(disk, name, wrap(name, getattr(disk, name)))


def killed_at(number: int, *, torn: bool = False) -> Callable[[str, int, tuple[Any, ...]], None]:
    """Die before the change of this number; ``torn``: with half of a write done."""

    def act(name: str, found: int, args: tuple[Any, ...]) -> None:
        if found == number:
            if torn and name == "write":
                os.write(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def failing_at(number: int, errno: int) -> Callable[[str, int, tuple[Any, ...]], None]:
    """Fail at the change of this number; a full disk takes half of what is written."""

    def act(name: str, found: int, args: tuple[Any, ...]) -> None:
        if found == number:
            if name == "write":
                os.write(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno, os.strerror(errno))

    return act


def tripped(workload: Workload, cache: Path, act: Callable[..., None]) -> Callable[[], None]:
    """The command with a tripwire."""

    def run() -> None:
        trip(act)
        workload.run(cache)

    return run


def contents(cache: Path) -> dict[str, str]:
    """Digest of every file, without what tells who made it, and when."""
    found = {}
    for path in sorted(cache.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(cache))
            found[name] = hashlib.sha256(_essence(name, path.read_bytes())).hexdigest()
    return found


def _essence(name: str, data: bytes) -> bytes:
    if name == CARD or not (name.startswith(("units/", "manifest-")) or name == "cache.json"):
        return b"" if name == CARD else data
    document = json.loads(data)
    del document["checksum"]
    document.pop("made", None)
    if name == "cache.json":
        del document["provenance"]["clock"]
    for file in document.get("files", {}):
        if file.startswith("units/") or file == "cache.json":
            document["files"][file] = ""
    return json.dumps(document, sort_keys=True).encode()


def check_whole(cache: Path, truth: dict[str, str]) -> None:
    """The cache is the undisturbed one: same files, clean, every unit and document once."""
    found = contents(cache)
    assert found == truth, f"{set(found.items()) ^ set(truth.items())}"
    report = verify(str(cache))
    assert report.sealed and not report.problems, report.problems
    state = read_state(Location(str(cache)))
    keys = [bytes(key) for key in state.done_keys()]
    assert len(keys) == len(set(keys)) and report.records == len(keys)
    assert all(not state.missing_units(plan) for plan in state.plans)


def check_partial(cache: Path) -> None:
    """What a fault left: nothing committed is lost or wrong, before anything is mended."""
    if not (cache / "cache.json").exists() or not (cache / "logits" / "capture.json").exists():
        return
    report = verify(str(cache), partial=True)
    assert not report.problems, report.problems


@contextmanager
def bench(
    rows: int, unit_tokens: int = 200
) -> Iterator[tuple[Path, Workload, dict[str, str], int]]:
    """A folder, a command, what it makes undisturbed, and how many changes of the disk it is."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        workload = make_workload(root, rows, unit_tokens)
        workload.run(root / "warm")
        calm = forked(tripped(workload, root / "calm", lambda *_: None))
        assert calm.code == 0, calm.error
        truth = contents(root / "calm")
        check_whole(root / "warm", truth)
        yield root, workload, truth, len(calm.changes)


def report(**found: Any) -> None:
    """The last line of a script's output."""
    print(json.dumps(found))


def progress(text: str) -> None:
    print(time.strftime("%T"), text, file=sys.stderr, flush=True)
