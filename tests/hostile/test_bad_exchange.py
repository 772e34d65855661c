"""Files of other formats that cannot be used: refused by name and row, or left out and counted."""

from __future__ import annotations

import contextlib
import json
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from exchanging import version_2
from tiny import Family, Ran

from cachekd.exchange._torch_file import load

Run = Callable[..., Ran]
GOOD = {
    "input_ids": [7, 8, 9],
    "target_token_ids": [[8, 3], [9, 4], [0, 1]],
    "target_logprobs": [[-0.5, -2.0], [-0.5, -2.0], [-0.5, -2.0]],
}


@pytest.fixture
def brought(cachekd: Run, family: Family, tmp_path: Path) -> Callable[..., Ran]:
    """Runs an import of rows, or of a path."""

    def run(content: Any, *further: object, name: str = "axolotl") -> Ran:
        path = content
        if isinstance(content, list):
            path = tmp_path / "data.jsonl"
            lines = [line if isinstance(line, str) else json.dumps(line) for line in content]
            path.write_text("".join(f"{line}\n" for line in lines))
        flags = ("--format", name, "--teacher", "t", "--tokenizer", family.teacher)
        return cachekd("import", path, *flags, "--cache", tmp_path / "cache", *further)

    return run


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"target_logprobs": [[float("nan"), -2.0], [-0.5, -2.0], [-0.5, -2.0]]}, "NaN"),
        ({"target_logprobs": [[0.5, -2.0], [-0.5, -2.0], [-0.5, -2.0]]}, "above 0"),
        ({"target_logprobs": [[-0.1, -0.2], [-0.5, -2.0], [-0.5, -2.0]]}, "mass above 1"),
        ({"target_token_ids": [[8, 8], [9, 4], [0, 1]]}, "stands twice"),
        ({"target_token_ids": [[8, 100_000], [9, 4], [0, 1]]}, "another tokenizer"),
        ({"input_ids": [7, 8, 100_000]}, "another tokenizer"),
        ({"target_token_ids": [[8, 3], [9], [0, 1]]}, "do not agree"),
        ({"input_ids": [7, 8, 9, 10, 11]}, "3 rows of targets beside 5"),
        ({"labels": [7, 8]}, "2 labels"),
    ],
)
def test_a_bad_row_is_named_or_left_out(
    brought: Callable[..., Ran], tmp_path: Path, changed: dict[str, Any], found: str
) -> None:
    other = {**GOOD, "input_ids": [7, 8, 10]}
    if "labels" in changed:
        other["labels"] = other["input_ids"]
    rows = [other, {**GOOD, **changed}]
    refused = brought(rows)
    assert refused.code == 1 and "data.jsonl row 1" in refused.err and found in refused.err
    assert "Traceback" not in refused.err
    kept = brought(rows, "--on-bad", "skip", "--json")
    assert kept.code == 0, kept.err
    assert kept.json["documents_left_out"] or kept.json["rows_left_out"]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"prompt_length": 9}, "prompt_length 9 of 3"),
        ({"prompt_length": "one"}, "prompt_length 'one'"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"weight": "much"}, "weight 'much'"),
        ({"domain": 7}, "domain 7"),
        ({"roles": [0, 0, 99]}, "no roles"),
        ({"roles": [0]}, "roles of 1 tokens"),
        ({"tail": [0.0]}, "tail has 1 rows"),
        ({"tail": None}, "expected a column of lists"),
    ],
)
def test_bad_facts_of_plain_lists_are_named_or_left_out(
    brought: Callable[..., Ran], changed: dict[str, Any], found: str
) -> None:
    good = {"input_ids": [7, 8, 10], "token_ids": [[8], [9]], "logprobs": [[-0.5], [-0.5]]}
    rows = [{**good, "tail": [-0.93, -0.93]} if "tail" in changed else good]
    rows.append({**good, "input_ids": [7, 8, 9], **changed})
    refused = brought(rows, name="arrow")
    assert refused.code == 1 and "data.jsonl row 1" in refused.err and found in refused.err
    assert "Traceback" not in refused.err
    kept = brought(rows, "--on-bad", "skip", "--json", name="arrow")
    assert kept.code == 0 and kept.json["samples"] == 1, kept.err


def test_another_format_is_named(brought: Callable[..., Ran], tmp_path: Path) -> None:
    refused = brought([GOOD], name="distillkit")
    assert "compressed_logprobs" in refused.err and "--format axolotl" in refused.err
    refused = brought([GOOD], name="openai")
    assert "choices" in refused.err and "--format axolotl" in refused.err
    refused = brought([GOOD], name="axolotal")
    assert refused.code == 2 and "Did you mean 'axolotl'" in refused.err
    assert not (tmp_path / "cache").exists()


def test_nothing_and_broken_lines(brought: Callable[..., Ran], tmp_path: Path) -> None:
    assert brought([]).code == 1
    assert "no such file" in brought(tmp_path / "none").err
    refused = brought([GOOD, '{"input_ids": [1,'])
    assert refused.code == 1 and "line 2" in refused.err
    answer = {"choices": [{"logprobs": {"content": [{"token": "token_id:3", "logprob": -1.0}]}}]}
    refused = brought([{**answer, "prompt_token_ids": [1, 2]}], name="openai")
    assert refused.code == 1 and "row 0" in refused.err
    refused = brought([answer, "{"], name="openai")
    assert "no prompt" in refused.err


def _tar(path: Path, name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
        tar.addfile(info, BytesIO(data))
    return path


def test_tars_that_are_none_of_megatrons(brought: Callable[..., Ran], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text('{"input_ids": [1, 2, 3]}\n')
    flags = ("--tokens", tokens)
    path = tmp_path / "dp0__0.tar"
    assert "--tokens" in brought(_tar(path, "0.pt.zst"), name="megatron").err
    for member, kind, found in (
        ("../../out", tarfile.REGTYPE, "is none that Megatron-LM writes"),
        ("0.pt.zst", tarfile.SYMTYPE, "no plain file"),
        ("0.pt.zst", tarfile.REGTYPE, "cannot be read"),
    ):
        refused = brought(_tar(path, member, kind=kind), *flags, name="megatron")
        assert refused.code == 1 and found in refused.err, refused.err
    path.write_bytes(_tar(path, "0.pt.zst", b"x" * 5000).read_bytes()[:1500])
    refused = brought(path, *flags, name="megatron")
    assert refused.code == 1 and "dp0__0.tar" in refused.err
    assert not (tmp_path / "cache").exists()


def test_a_table_that_unpacks_to_far_more_is_refused_unread(
    brought: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen million equal values in a file of some kilobytes."""
    size = 1 << 23
    inner = pa.ListArray.from_arrays([0, size], np.zeros(size, np.int8))
    lists = pa.ListArray.from_arrays([0, 1], inner)
    tokens = pa.array([[7, 8]])
    names = ["input_ids", "target_token_ids", "target_logprobs"]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_arrays([tokens, lists, lists], names), path)
    assert path.stat().st_size < 1 << 17
    monkeypatch.setattr(pq, "ParquetFile", None)
    refused = brought(path)
    assert refused.code == 1 and "nothing of it was unpacked" in refused.err, refused.err
    for data in (b"PAR1", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", bytes(200)):
        path.write_bytes(data)
        refused = brought(path)
        assert refused.code == 1 and "none of Parquet" in refused.err, refused.err
        assert "Traceback" not in refused.err


def test_an_object_stream_is_data_alone() -> None:
    for program in (b"cos\nsystem\n.", b"\x80\x02cbuiltins\neval\n.", b"\x80\x04\x95"):
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", program)
        with pytest.raises(ValueError, match=r"no tensor|instruction"):
            load(buffer.getvalue())


def test_an_export_that_cannot_be_written(cachekd: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    refused = cachekd("export", cache, "--format", "arrow", "--out", out)
    assert refused.code == 2 and "not empty" in refused.err
    refused = cachekd("export", cache, "--format", "arrow", "--out", out / "mine" / "below")
    assert refused.code == 1 and "cannot write" in refused.err
    assert {path.name for path in out.iterdir()} == {"mine"}


@pytest.mark.parametrize("name", ["axolotl", "arrow", "openai"])
@pytest.mark.parametrize(
    "changed",
    [{"input_ids": [10**30, 8, 9]}, {"text": "\ud800"}, {"input_ids": ["\ud800", 8, 9]}],
)
def test_numbers_and_text_that_fit_no_column(
    brought: Callable[..., Ran], name: str, changed: dict[str, Any]
) -> None:
    """A row beside a good one: named, or left out and counted; half characters are text to some."""
    good = {"axolotl": GOOD, "arrow": {**GOOD, "token_ids": [[8], [9]], "logprobs": [[-0.5]] * 2}}
    place = {"8": {"logprob": -0.5}}
    good["openai"] = {"prompt_logprobs": [None, place, place], "choices": [{}]}
    bad = {**good[name], **changed}
    if name == "openai":
        good[name]["prompt_token_ids"] = [7, 8, 9]
        bad |= {"prompt_token_ids": changed.get("input_ids", ["\ud800", 8, 9])}
    refused = brought([good[name], bad], name=name)
    assert refused.code == 1 and "data.jsonl row 1" in refused.err, refused.err
    assert "Traceback" not in refused.err
    kept = brought([good[name], bad], "--on-bad", "skip", "--json", name=name)
    assert kept.code == 0 and sum(kept.json["documents_left_out"].values()) == 1, kept.err


def test_a_column_that_names_no_temperature(brought: Callable[..., Ran]) -> None:
    row = {"input_ids": [7, 8], "token_ids": [[8]], "logprobs": [[-0.5]], "lognorm_x": [0.0]}
    refused = brought([row], name="arrow")
    assert refused.code == 1 and "lognorm_<temperature>" in refused.err
    assert "Traceback" not in refused.err


def test_a_damaged_file_of_tensors_is_an_error_of_its_own() -> None:
    """Any byte of the object stream, and of the archive around it."""
    good = torch.zeros(2, 1, 3)
    whole = version_2(good, good.long())
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 400).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        for data in (bytes(damaged), whole[:place]):
            with contextlib.suppress(ValueError):
                load(data)
                continue
            refused += 1
    assert refused > 400


def test_a_folder_that_no_rename_can_make(
    cachekd: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is written."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    for out in (".", tmp_path / "link", "/"):
        refused = cachekd("export", cache, "--format", "arrow", "--out", out)
        assert refused.code == 2 and "cannot be replaced" in refused.err, refused.err
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "in"}
