"""Out and in again: values to the precision of the format, and a teacher that is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from exchanging import brought_in, write_lines
from ragged import entries
from tiny import Family, Ran

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.errors import MismatchError
from cachekd.store.verify import verify


def furthest(left: Path, right: Path) -> tuple[float, int]:
    """Largest difference of a log-probability, and rows compared; entries must be the same."""
    first, second = open_cache(str(left)), open_cache(str(right))
    worst, rows = 0.0, 0
    for record in first:
        other = second.get(record.input_ids).logits
        for row in range(record.logits.rows):
            mine, theirs = entries(record.logits, row), entries(other, row)
            if theirs:
                assert mine.keys() == theirs.keys()
                rows += 1
                worst = max(worst, *(abs(mine[i][0] - theirs[i][0]) for i in mine))
    return worst, rows


@pytest.mark.parametrize(
    ("name", "further", "most"),
    [
        ("arrow", {}, 0.0),
        ("axolotl", {}, 0.0),
        ("distillkit", {}, 0.0),
        ("distillkit", {"exact_dtype": "float16"}, 0.01),
        ("distillkit", {"exact_dtype": "bfloat16"}, 0.07),
    ],
)
def test_values_come_back(
    name: str, further: dict[str, str], most: float, captured: Path, family: Family, tmp_path: Path
) -> None:
    export_cache(
        ExportConfig(cache=str(captured), format=name, out=str(tmp_path / "out"), **further)
    )
    report = brought_in(tmp_path / "out", family, tmp_path / "in", format=name)
    worst, rows = furthest(captured, tmp_path / "in")
    assert rows > 50 and worst <= most
    assert report["documents_left_out"] == report["rows_left_out"] == {}
    assert not verify(str(tmp_path / "in")).findings
    known = open_cache(str(captured)).identity
    assert open_cache(str(tmp_path / "in")).identity.source_id != known.source_id


def test_an_import_goes_on_and_is_marked(
    captured: Path, family: Family, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    out, cache = tmp_path / "out", tmp_path / "in"
    export = ("export", captured, "--format", "arrow", "--out", out, "--shard-size", "1KB")
    assert cachekd(*export, "--json").json["files"] > 0
    flags = ("import", out, "--format", "arrow", "--teacher", "org/t")
    flags += ("--tokenizer", family.teacher, "--cache", cache, "--unit-tokens", 60, "--json")
    first, second = cachekd(*flags).json, cachekd(*flags).json
    assert first["new_samples"] == 12 and first["shards"] > 1
    assert "new_samples" not in second and second["root"] == first["root"]
    shown = cachekd("inspect", cache, "--json").json
    assert shown["identity"] == "asserted, not known" and shown["imported"]["tail"] == "stored"
    refused = cachekd("merge", captured, cache, "--out", tmp_path / "both")
    assert refused.code == 5 and "asserted" in refused.err
    assert cachekd("verify", cache, "--teacher", family.teacher).code == 5


def test_a_wrong_shift_is_seen(captured: Path, family: Family, tmp_path: Path) -> None:
    """Rows of tokens that the teacher itself finds likely, moved by one."""
    out = tmp_path / "out"
    export_cache(ExportConfig(cache=str(captured), format="arrow", out=str(out)))
    (file,) = out.glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    lines = []
    for row in rows:  # each row's best token is the one before: rows about their own token
        ids = row["input_ids"]
        own = [[t, (t + 1) % 300] for t in ids]
        lines.append({"input_ids": ids, "target_token_ids": own, "labels": ids})
        lines[-1]["target_logprobs"] = [[-0.1, -3.0]] * len(ids)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(MismatchError, match="--shift -1"):
        brought_in(path, family, tmp_path / "in", format="axolotl")
    assert not (tmp_path / "in").exists()
    report = brought_in(path, family, tmp_path / "in", format="axolotl", shift=-1)
    assert report["samples"] == 12


def test_renormalised_values_are_marked(captured: Path, family: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"values": "renormalised", "out": str(out)}
    export_cache(ExportConfig(cache=str(captured), format="axolotl", **settings))
    report = brought_in(out, family, tmp_path / "in", format="axolotl")
    assert report["values"] == "renormalised"
    logits = open_cache(str(tmp_path / "in"))[0].logits
    held = np.diff(logits.offsets) > 0
    assert (logits.tail[held] == -np.inf).all()


def test_vllm_and_openai_responses(captured: Path, family: Family, tmp_path: Path) -> None:
    record = open_cache(str(captured))[0]
    places = [
        {str(i): {"logprob": v[0], "rank": 1} for i, v in entries(record.logits, row).items()}
        for row in range(record.logits.rows)
    ]
    ids = record.input_ids.tolist()
    scored = {"prompt_token_ids": ids, "prompt_logprobs": [None, *places], "choices": [{}]}
    content = [
        {
            "token": f"token_id:{token}",
            "logprob": -1.0,
            "top_logprobs": [{"token": f"token_id:{(token + 1) % 300}", "logprob": -2.0}],
        }
        for token in ids[4:]
    ]
    chat = {"prompt_token_ids": ids[:4], "choices": [{"logprobs": {"content": content}}]}
    for name, line in (("scored", scored), ("chat", {"response": {"body": chat}})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
        brought_in(tmp_path / f"{name}.jsonl", family, tmp_path / name, format="openai")
    found = open_cache(str(tmp_path / "scored"))[0].logits
    assert all(entries(found, r) == entries(record.logits, r) for r in range(found.rows))
    answered = open_cache(str(tmp_path / "chat"))[0]
    assert answered.prompt_length == 4
    assert np.diff(answered.logits.offsets).tolist() == [0] * 3 + [2] * (len(ids) - 4)
    assert np.allclose(answered.logits.next_logprob[3:], -1.0)


def test_entries_may_stand_in_any_order(family: Family, tmp_path: Path) -> None:
    """Stored best first, equal ones by id; a row that is in order already is left as it is."""
    row = [[(5, -1.0), (3, -1.0), (9, -2.0)], [(4, -0.5), (8, -3.0), (2, -4.0)]]
    lines = []
    for number, orders in enumerate([((0, 1, 2), (0, 1, 2)), ((2, 0, 1), (1, 2, 0))]):
        entries = [[own[i] for i in order] for own, order in zip(row, orders, strict=True)]
        lines.append(
            {
                "input_ids": [7, 8, 20 + number],
                "target_token_ids": [[i for i, _ in own] for own in entries] + [[0]],
                "target_logprobs": [[v for _, v in own] for own in entries] + [[-1e9]],
            }
        )
    path = write_lines(tmp_path / "a.jsonl", lines)
    brought_in(path, family, tmp_path / "in", format="axolotl")
    for record in open_cache(str(tmp_path / "in")):
        assert record.logits.ids.tolist() == [3, 5, 9, 4, 8, 2]
        assert record.logits.logprobs.tolist() == [-1.0, -1.0, -2.0, -0.5, -3.0, -4.0]
