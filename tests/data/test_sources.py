"""Files, folders, URLs and datasets: rows out, or an error that names the place."""

from __future__ import annotations

import csv
import gzip
import json
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachekd.data.sources import read_rows
from cachekd.errors import DataError

ROWS = [{"text": "one"}, {"text": 'two, "quoted"\nlines'}, {"text": "drei ü"}]


def write(path):
    suffix = path.name.partition(".")[2]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    if suffix == "jsonl":
        path.write_text(lines + "\n\n", encoding="utf-8")
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif suffix == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    elif suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


def read(settings, *names, **values):
    return list(read_rows(settings(data=tuple(str(name) for name in names), **values)))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, settings, suffix):
    path = tmp_path / f"rows.{suffix}"
    write(path)
    assert read(settings, path) == [(path.name, i, row) for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("key", ["data", "rows"])
def test_json_list_under_a_key(tmp_path, settings, key):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, key: ROWS}))
    assert [row for _, _, row in read(settings, path)] == ROWS


def test_url(settings):
    with fsspec.open("memory://place/a.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]))
    assert read(settings, "memory://place/a.jsonl") == [("a.jsonl", 0, ROWS[0])]


def test_sources_follow_each_other_and_max_samples_counts_over_all(tmp_path, settings):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name)
    rows = read(settings, tmp_path / "a.jsonl", tmp_path / "b.jsonl", max_samples=4)
    assert [(source, number) for source, number, _ in rows] == [
        ("a.jsonl", 0),
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("b.jsonl", 0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl line 2: expected one JSON object"),
        ("a.jsonl", b'{"a": 1}\n\n\xff\n', r"a\.jsonl line 3"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl row 1: expected an object, found list"),
        ("a.jsonl", b"", r"a\.jsonl: expected rows, found none"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: expected rows, found none"),
        ("a.json", b"[1, 2", r"a\.json: expected a JSON file"),
        ("a.json", b'{"a": 1}', r"a\.json: expected a list of objects"),
        ("a.json", b"[]", r"a\.json: expected rows, found none"),
        ("a.json", b"[1]", r"a\.json row 0: expected an object, found int"),
        ("a.csv", b"text\n", r"a\.csv: expected rows, found none"),
        ("a.csv", b"text\na,b\n", r"a\.csv line 2: expected 1 fields"),
        ("a.csv", b'text\n"a\n', r"a\.csv near line 2: not valid CSV"),
        ("a.csv", b"text\n\xff\n", r"a\.csv near line \d: not valid CSV"),
        ("a.parquet", b"PAR1 nothing", r"a\.parquet: the file cannot be read"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: the file cannot be read"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9],
            "cannot be read|expected one JSON",
        ),
        ("a.xlsx", b"x", r"expected one of \.jsonl, \.json, \.csv, \.parquet.*'\.xlsx'"),
    ],
)
def test_broken_files_name_the_place(tmp_path, settings, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(settings, path)


def test_missing_file(tmp_path, settings):
    with pytest.raises(DataError, match=r"missing\.jsonl: there is no such file"):
        read(settings, tmp_path / "missing.jsonl")


def test_folder_lists_what_is_inside(tmp_path, settings):
    write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"found a folder with: train\.jsonl"):
        read(settings, tmp_path)


def test_long_csv_field(tmp_path, settings):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read(settings, path)[0][2]["text"]) == 200_000


def test_anything_else_is_a_datasets_name(monkeypatch, settings):
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(name, config, split):
            asked.append((name, config, split))
            return ROWS

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    rows = read(settings, "owner/name", dataset_config="en", split="test")
    assert asked == [("owner/name", "en", "test")]
    assert rows[2] == ("owner/name", 2, ROWS[2])


def test_datasets_failure_is_a_data_error(monkeypatch, settings):
    class Datasets:
        @staticmethod
        def load_dataset(name, config, split):
            raise KeyError("no split")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(DataError, match=r"owner/name.*split 'train'.*no split"):
        read(settings, "owner/name")


def test_without_datasets_says_what_to_install(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'cachekd\[datasets\]'"):
        read(settings, "owner/name")
