"""The score store: values come back exactly or not at all, whoever writes, dies or damages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachekd.data.digests import json_id
from cachekd.errors import ConfigError, MismatchError, StoreError
from cachekd.store import score_index, score_logs, score_segments
from cachekd.store.io import Location
from cachekd.store.score_index import ScoreIndex, entries_of
from cachekd.store.scores import ScoreStore

FACTS = {"teacher": "one", "k": 4}


def key(number: int) -> bytes:
    return bytes.fromhex(json_id(number))


def value(number: int) -> bytes:
    return bytes([number % 256]) * (3 + number % 50)


def records(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(key(n), value(n)) for n in numbers]


def store(folder: Path, facts: dict[str, Any] = FACTS) -> ScoreStore:
    return ScoreStore(str(folder), "id", facts)


def found(scores: ScoreStore, numbers: range) -> list[int]:
    """Which of these are there; each must be right."""
    values = scores.get([key(n) for n in numbers])
    for number, held in zip(numbers, values, strict=True):
        assert held is None or held == value(number)
    return [number for number, held in zip(numbers, values, strict=True) if held is not None]


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "id" / "logs").glob("*.log"))


def written(folder: Path, *parts: range) -> None:
    """Closed logs, one for each part."""
    for part in parts:
        scores = store(folder)
        scores.put(records(*part))
        scores.close()


def test_own_records_are_there_at_once_and_others_after_a_refresh(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    one.put(records(1, 2))
    assert found(one, range(4)) == [1, 2] and len(one) == 2
    other.refresh()
    assert found(other, range(4)) == [], "nothing was flushed"
    one.flush()
    assert found(other, range(4)) == []
    other.refresh()
    assert found(other, range(4)) == [1, 2]
    one.put(records(3))
    other.put(records(0))
    one.flush()
    other.flush()
    one.refresh()
    other.refresh()
    assert found(one, range(4)) == found(other, range(4)) == [0, 1, 2, 3]
    assert len(logs(tmp_path)) == 2, "a log has one writer"
    one.close()
    other.close()
    assert found(store(tmp_path), range(4)) == [0, 1, 2, 3]


def test_a_reader_makes_no_log(tmp_path: Path) -> None:
    store(tmp_path).close()
    assert logs(tmp_path) == []


def test_another_identity_is_refused(tmp_path: Path) -> None:
    store(tmp_path).close()
    with pytest.raises(MismatchError, match=r"k: 4 / 5"):
        store(tmp_path, {**FACTS, "k": 5})


def test_only_local_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a local folder"):
        ScoreStore("memory://scores", "id", FACTS)


def test_a_log_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    written(tmp_path / "whole", range(3))
    data = logs(tmp_path / "whole")[0].read_bytes()
    ends = [8]
    for number in range(3):
        ends.append(ends[-1] + len(score_logs.pack(key(number), value(number))))
    assert ends[-1] == len(data)
    written(tmp_path / "cut", range(1))
    path = logs(tmp_path / "cut")[0]
    for size in range(len(data)):
        path.write_bytes(data[:size])
        scores = store(tmp_path / "cut")
        whole = sum(end <= size for end in ends[1:])
        assert found(scores, range(3)) == list(range(whole))
        assert scores.figures()["bytes_torn"] == size - (ends[whole] if size >= 8 else 0)
        scores.close()


def test_every_flipped_bit_is_a_miss(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    path = logs(tmp_path)[0]
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        scores = store(tmp_path)
        assert len(found(scores, range(2))) < 2
        figures = scores.figures()
        assert figures["records_damaged"] + figures["bytes_torn"] > 0
        scores.close()


def test_a_damaged_value_can_be_written_again(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    path = logs(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    scores = store(tmp_path)
    assert found(scores, range(3)) == [0, 1] and scores.damaged == 1
    scores.put(records(2))
    scores.flush()
    assert found(scores, range(3)) == [0, 1, 2]


def test_compaction_keeps_all_and_leaves_open_logs_alone(tmp_path: Path) -> None:
    written(tmp_path, range(10), range(5, 15), range(15, 20))
    writer, reader = store(tmp_path), store(tmp_path)
    writer.put(records(20, 21))
    writer.flush()
    assert writer.compact().records == 20
    assert [path.name for path in logs(tmp_path)] == [writer._writer.path.name]  # type: ignore[union-attr]
    writer.put(records(22))
    writer.flush()
    for scores in (writer, reader, store(tmp_path)):
        scores.refresh()
        assert found(scores, range(30)) == list(range(23))
    writer.close()
    assert store(tmp_path).compact().records == 23, "a small segment is merged with the next logs"
    assert len(list((tmp_path / "id" / "segments").iterdir())) == 1 and logs(tmp_path) == []
    assert found(store(tmp_path), range(30)) == list(range(23))
    assert store(tmp_path).compact().records == 0


def test_segments_end_at_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_segments, "_SEGMENT_BYTES", 300)
    written(tmp_path, range(30))
    store(tmp_path).compact()
    assert len(list((tmp_path / "id" / "segments").iterdir())) > 3
    assert found(store(tmp_path), range(30)) == list(range(30))


def test_compaction_leaves_damage_out(tmp_path: Path) -> None:
    written(tmp_path, range(5))
    path = logs(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[8 + 28] ^= 4
    path.write_bytes(data + b"torn")
    done = store(tmp_path).compact()
    assert (done.records, done.damaged, done.torn_bytes) == (4, 1, 4)
    assert found(store(tmp_path), range(5)) == [1, 2, 3, 4]


def test_a_segment_with_a_damaged_index_is_scanned(tmp_path: Path) -> None:
    written(tmp_path, range(5))
    store(tmp_path).compact()
    (path,) = (tmp_path / "id" / "segments").iterdir()
    data = bytearray(path.read_bytes())
    data[-60] ^= 1
    path.write_bytes(data)
    assert found(store(tmp_path), range(5)) == list(range(5))


@pytest.mark.parametrize("after", range(4))
def test_a_crash_of_a_compaction_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """It stops before the segment is there, behind it, and between two removals."""
    written(tmp_path, range(4), range(4, 8), range(8, 12))
    true_create, true_unlink, steps = Location.create, Path.unlink, 0

    def step(true: Any, *args: Any, **further: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > after:
            raise RuntimeError("crash")
        return true(*args, **further)

    scores = store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "create", lambda *args: step(true_create, *args))
        patch.setattr(
            Path,
            "unlink",
            lambda self, missing_ok=False: (
                true_unlink(self, missing_ok=missing_ok)
                if self.name.startswith(".tmp")
                else step(true_unlink, self)
            ),
        )
        with pytest.raises(RuntimeError, match="crash"):
            scores.compact()
    assert found(store(tmp_path), range(12)) == list(range(12))
    store(tmp_path).compact()
    assert found(store(tmp_path), range(12)) == list(range(12)) and logs(tmp_path) == []


def test_one_compaction_at_a_time(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    with score_segments._alone(tmp_path / "id") as alone:
        assert alone and store(tmp_path).compact().records == 0
    assert store(tmp_path).compact().records == 4


def test_many_closed_logs_are_merged_when_a_store_is_closed(tmp_path: Path) -> None:
    written(tmp_path, *(range(i, i + 1) for i in range(9)))
    assert logs(tmp_path) == []
    assert found(store(tmp_path), range(9)) == list(range(9))


def test_a_full_disk_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = store(tmp_path)
    scores.put(records(1))
    scores.flush()
    true_write = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if offset > 100:
            raise OSError(28, "No space left on device")
        return true_write(descriptor, data[:60], offset)

    scores.put(records(*range(2, 9)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match=r"No space left.*--score-cache"):
            scores.flush()
    assert found(store(tmp_path), range(9)) == [1]
    scores.flush()
    assert found(store(tmp_path), range(9)) == list(range(1, 9))


def test_the_index_is_packed_and_finds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_index, "_FEW", 16)
    index, rng = ScoreIndex(), np.random.default_rng(0)
    for start in range(0, 600, 7):
        numbers = rng.permutation(range(start, start + 9)).tolist()
        index.add(entries_of([(key(n), n % 5, n, 100 * n) for n in numbers]))
    assert len(index) == 604
    for number, place in zip(range(700), index.find([key(n) for n in range(700)]), strict=True):
        assert place == ((number % 5, 100 * number, number) if number < 604 else None)
    index.forget(key(77))
    assert index.find([key(77), key(78)]) == [None, (3, 7800, 78)]
    assert score_index.ENTRY.itemsize == 32


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_scores import records, store
from pathlib import Path
scores = store(Path(sys.argv[1]))
for number in range(10**6):
    scores.put(records(number))
    scores.flush()
    if number == 20:
        print("ready", flush=True)
"""


@pytest.mark.reliability
def test_a_killed_writer_loses_no_flushed_record(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), here], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGKILL)
    scores = store(tmp_path)
    assert found(scores, range(21)) == list(range(21))
    scores.compact()
    assert logs(tmp_path) == [] and found(store(tmp_path), range(21)) == list(range(21))
