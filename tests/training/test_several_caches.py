"""Runs from several real caches: a mixture, a mix, routing; and a remote cache read in windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from runs import TRAINING, capture
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import CacheDataset, EpochSampler, TrainConfig
from cachekd.errors import ConfigError, MismatchError
from cachekd.objectives import Needs
from cachekd.store import open_shards
from cachekd.store.io import Location
from cachekd.training import checks
from cachekd.training.mixture import Mixture
from cachekd.training.options import dataset_options
from cachekd.training.order import Order


@pytest.fixture(scope="module")
def two(family: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same labelled samples with the teacher's targets, and with the student's own."""
    folder = tmp_path_factory.mktemp("two")
    rows = [{**row, "topic": "law" if i % 3 else ""} for i, row in enumerate(chat_rows(24))]
    data = write_rows(folder / "data.jsonl", rows)
    own = Family(family.student, family.student, family.vocab)
    capture(family, data, folder / "expert", domain_column="topic", unit_tokens=256)
    capture(own, data, folder / "reference", domain_column="topic", unit_tokens=256)
    return folder / "expert", folder / "reference"


def test_a_run_learns_from_a_mixture(
    family: Family, two: tuple[Path, Path], tmp_path: Path, cachekd: Any
) -> None:
    def run(*flags: object) -> Any:
        given = {**TRAINING, "max_steps": 1, "logging_steps": 1, "learning_rate": 0}
        return cachekd(
            "train", "--cache", f"a={two[0]}", "--cache", f"b={two[1]}", "--json",
            "--student", family.student, "--output-dir", tmp_path / "out", "--loss", "kd=1",
            *flags, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()),
        )  # fmt: skip

    done = run("--mixture", "a=0.3,b=0.7", "--mixture-tail", "flat")
    assert done.code == 0, done.err
    assert done.json["config"]["mixture"] == {"a": 0.3, "b": 0.7}
    mixed = done.json["history"][0]["kl"]
    (tmp_path / "out" / "run.json").unlink()
    # b is the student itself: KL is convex, 0 at b, and at most 0.3 of what it is at a.
    (alone,) = (row["kl"] for row in run("--mixture", "a=1,b=1e-9").json["history"] if "kl" in row)
    assert 0 < mixed < 0.3 * alone
    (tmp_path / "out" / "run.json").unlink()
    refused = run("--mixture", "a=0.3,b=0.7", "--temperature", "2")
    assert refused.code == 2 and "temperature" in refused.err


def test_gradient_of_a_mixture_is_the_mean_of_its_members(two: tuple[Path, Path]) -> None:
    """Forward KL has the gradient q - p, which is linear in p."""
    names = dict(zip("ab", two, strict=True))
    caches = [cachekd.open_cache(str(path), name=name) for name, path in names.items()]
    dense = []
    for dataset in (
        CacheDataset(caches, mixture=Mixture(weights={"a": 1.0, "b": 3.0})),
        CacheDataset(caches[0]),
        CacheDataset(caches[1]),
    ):
        logits = dataset.record(2).logits
        p = np.zeros((logits.rows, logits.vocab_size))
        rows = np.repeat(np.arange(logits.rows), np.diff(logits.offsets))
        p[rows, logits.ids] = np.exp(logits.logprobs.astype(np.float64))
        dense.append(p)
    own = caches[0][2].logits
    kept = np.exp(own.tail.astype(np.float64)).max()
    assert np.allclose(dense[0], 0.25 * dense[1] + 0.75 * dense[2], atol=kept)


def test_a_mix_trains_as_many_rows_as_it_says(
    family: Family, two: tuple[Path, Path], tmp_path: Path
) -> None:
    config = TrainConfig(
        cache=(f"a={two[0]}", f"b={two[0].parent / 'expert'}"),
        student=str(family.student),
        output_dir=str(tmp_path / "out"),
        mix={"a": 2.5, "b": 1.0},
        training={**TRAINING, "max_steps": -1, "num_train_epochs": 1},
    )
    report = cachekd.train(config)
    assert report["counts"]["samples_by_cache"] == {"a": 24, "b": 0}
    assert report["steps"] == 60 // 4
    changed = TrainConfig(
        **{**vars(config), "mix": {"a": 2.0}},
    )
    resumed = {**changed.training, "resume_from_checkpoint": True}
    with pytest.raises(MismatchError, match=r"mix\.a: 2\.5 / 2\.0"):
        cachekd.train(TrainConfig(**{**vars(changed), "training": resumed}))


def test_routing_from_settings(family: Family, two: tuple[Path, Path]) -> None:
    needs = Needs(routed=True, start="reference", one_teacher=False)
    caches = [
        cachekd.open_cache(str(path), name=name)
        for name, path in zip(("expert", "reference"), two, strict=True)
    ]
    checks.check_needs(needs, caches)
    checks.check_start(needs, caches, family.student)
    with pytest.raises(MismatchError, match="--teacher"):
        checks.check_start(needs, caches, family.teacher)
    config = TrainConfig(cache=("c",), student="s", output_dir="o", expert_domains=("law",))
    options = dataset_options(config, needs, caches, family.student)
    dataset = CacheDataset(caches, **options)
    assert np.bincount(dataset.cache_numbers).tolist() == [16, 8]
    assert all((dataset.record(i).domain == "law") == (i < 16) for i in range(24))
    with pytest.raises(ConfigError, match="does not route"):
        dataset_options(config, Needs(), caches, family.student)


def test_a_window_at_a_time_fetches_each_remote_shard_once(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path}/cache"
    fsspec.filesystem("memory").put(str(two[0]), f"{tmp_path}/cache", recursive=True)
    fetched: list[str] = []
    read = Location.map

    def counted(self: Location, name: str) -> Any:
        fetched.append(name)
        return read(self, name)

    monkeypatch.setattr(Location, "map", counted)
    monkeypatch.setattr(open_shards, "_MEMORY_BYTES_HELD", 1)  # one shard

    def fetches(order: Order) -> list[str]:
        dataset = CacheDataset(cachekd.open_cache(url), order=order)
        for i in EpochSampler(dataset, 0):
            dataset[i]
        names = [name for name in fetched if name.startswith("logits/")]
        fetched.clear()
        return names

    windows, anywhere = fetches(Order(shuffle_shards=1)), fetches(Order())
    assert len(set(windows)) == len(windows) == len(set(anywhere)) > 2
    assert len(anywhere) > len(windows)
