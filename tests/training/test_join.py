"""Training on a data file whose rows are met with a cache by their tokens."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCache, record
from runs import TRAINING, capture
from tiny import TEMPLATE, Family, chat_rows, write_rows

import cachekd
from cachekd import CacheDataset, TrainConfig
from cachekd.errors import ConfigError, DataError, MismatchError
from cachekd.training.join import DataSamples, read_samples_of

DATED = "{{ strftime_now('%d %m %Y %H:%M:%S') }}" + TEMPLATE


@pytest.fixture(scope="module")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("join")
    data = write_rows(folder / "all.jsonl", chat_rows(20))
    capture(family, data, folder / "cache")
    return folder / "cache"


def _samples(family: Family, cache: Any, data: Path, **further: Any) -> DataSamples:
    student = further.pop("student", family.student)
    config = TrainConfig(
        cache=("unused",), student="s", output_dir="o", data=(str(data),), **further
    )
    return read_samples_of(config, [cache], student)


def test_rows_of_the_file_alone_as_often_as_it_has_them_with_what_it_says_of_them(
    family: Family, made: Path, tmp_path: Path
) -> None:
    rows = chat_rows(6, first=4)
    rows = [{**row, "topic": "", "counts": 1.0} for row in [*rows, *rows[:2]]]
    rows[-1] |= {"topic": "law", "counts": 3.0}
    data = write_rows(tmp_path / "some.jsonl", rows)
    cache = cachekd.open_cache(str(made))
    samples = _samples(family, cache, data, domain_column="topic", columns={"weight": "counts"})
    dataset = CacheDataset(cache, data=samples)
    assert len(dataset) == 8 and not dataset.dropped
    by_text = {tuple(item.input_ids.tolist()): item for item in cache}
    records = dataset.records(range(8))
    for item in records:
        stored = by_text[tuple(item.input_ids.tolist())]
        assert item.key == stored.key
        assert item.logits.ids.tolist() == stored.logits.ids.tolist()
    seen = Counter(item.key for item in records)
    assert sorted(seen.values()) == [1, 1, 1, 1, 2, 2]
    assert len(set(dataset.sample_ids)) == 8
    assert [(item.weight, item.domain) for item in records[-2:]] == [(1.0, ""), (3.0, "law")]
    assert seen[records[-1].key] == 2


def test_a_file_masks_anew(family: Family, made: Path, tmp_path: Path) -> None:
    cache = cachekd.open_cache(str(made))
    item = cache[3]
    ids = item.input_ids.tolist()
    labels = [-100] * len(ids)
    labels[5:8] = ids[5:8]
    data = write_rows(tmp_path / "masked.jsonl", [{"input_ids": ids, "labels": labels}])
    dataset = CacheDataset(cache, data=_samples(family, cache, data))
    assert dataset.trained == 3
    batch = cachekd.Collator()(dataset.records([0]))
    assert batch["rows"].tolist() == [4, 5, 6]
    first, last = item.logits.offsets[[4, 7]]
    assert batch["targets"]["ids"].tolist() == item.logits.ids[first:last].tolist()


def test_rows_without_targets_are_named_or_counted(
    family: Family, made: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "more.jsonl", chat_rows(5, first=17))
    cache = cachekd.open_cache(str(made))
    samples = _samples(family, cache, data)
    with pytest.raises(DataError, match=r"2 of 5 samples.*more.jsonl row 3 .*--on-missing skip"):
        CacheDataset(cache, data=samples)
    dataset = CacheDataset(cache, data=samples, on_missing="skip")
    assert len(dataset) == 3 and dataset.dropped == {"not in the caches": 2}
    other = write_rows(tmp_path / "other.jsonl", chat_rows(2, first=100))
    with pytest.raises(DataError, match="as at the capture"):
        CacheDataset(cache, data=_samples(family, cache, other))


def test_rows_cut_at_the_capture_are_found(family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "long.jsonl", chat_rows(12))
    for how in ("truncate", "split"):
        capture(family, data, tmp_path / how, max_length=48, on_long=how)
        cache = cachekd.open_cache(str(tmp_path / how))
        assert cache.lengths.max() == 48
        samples = _samples(family, cache, data, on_long=how)
        assert sorted(CacheDataset(cache, data=samples).sample_ids) == sorted(cache.sample_ids)
    uncut = _samples(family, cache, data)
    with pytest.raises(DataError, match="--on-long"):
        CacheDataset(cache, data=uncut)
    some = CacheDataset(cache, data=uncut, on_missing="skip")
    assert 0 < len(some) < 12 and some.dropped["not in the caches"] == 12 - len(some)


def test_template_clock_and_eos_are_those_of_the_capture(
    family: Family, tmp_path: Path, copy_of: Any
) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)
    data = write_rows(tmp_path / "rows.jsonl", [*chat_rows(3), {"text": "the old river"}])
    capture(family, data, tmp_path / "dated", chat_template_path=str(template), add_eos=False)
    cache = cachekd.open_cache(str(tmp_path / "dated"))
    bare = copy_of(family.student, "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    samples = _samples(family, cache, data, student=bare)
    assert sorted(samples.table.ids) == sorted(cache.sample_ids)
    with pytest.raises(MismatchError, match=r"chat template of the student"):
        _samples(family, cache, data)


def test_caches_that_do_not_say_how_they_made_tokens_are_refused(
    family: Family, made: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", chat_rows(2))
    known = cachekd.open_cache(str(made), name="a")
    facts = dict(known.identity.provenance)
    other = FakeCache([record([1, 2])], name="b", provenance={**facts, "add_eos": False})
    config = TrainConfig(cache=("c",), student="s", output_dir="o", data=(str(data),))
    with pytest.raises(MismatchError, match=r"'a' and 'b'[\s\S]*add_eos: True / False"):
        read_samples_of(config, [known, other], family.student)
    facts.pop("clock")
    with pytest.raises(DataError, match="lacks clock"):
        _samples(family, FakeCache([record([1, 2])], provenance=facts), data)


def test_labels_of_the_file_route(family: Family, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "twin")
    caches = [
        cachekd.open_cache(str(made), name="expert"),
        cachekd.open_cache(str(tmp_path / "twin"), name="reference"),
    ]
    rows = [{**row, "topic": "law" if i in (2, 3) else ""} for i, row in enumerate(chat_rows(6))]
    data = write_rows(tmp_path / "labelled.jsonl", rows)
    samples = _samples(family, caches[0], data, domain_column="topic")
    dataset = CacheDataset(caches, route=("law",), data=samples)
    assert dataset.cache_numbers.tolist() == [1, 1, 0, 0, 1, 1]


def test_a_run_trains_on_the_file(family: Family, made: Path, tmp_path: Path, cachekd: Any) -> None:
    data = write_rows(tmp_path / "some.jsonl", [*chat_rows(4), *chat_rows(1)])
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TRAINING, "max_steps": 2}.items()]
    out = tmp_path / "out"
    done = cachekd(
        "train", "--cache", made, "--student", family.student, "--output-dir", out,
        "--data", data, "--reduction", "seq_mean", "--shuffle-shards", "1", "--json", *flags,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["counts"]["samples"] == 5
    refused = cachekd(
        "train", "--cache", made, "--student", family.student, "--output-dir", tmp_path / "b",
        "--domain-column", "topic",
    )  # fmt: skip
    assert refused.code == 2 and "--data" in refused.err


def test_settings_about_data_need_data() -> None:
    for settings in ({"split": "test"}, {"on_long": "skip"}, {"columns": {"output": "answer"}}):
        with pytest.raises(ConfigError, match="--data, which is not given"):
            TrainConfig(cache=("c",), student="s", output_dir="o", **settings)
