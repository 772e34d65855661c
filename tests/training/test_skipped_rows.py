"""Rows that the teacher gave no distribution of: no objective sees them, and runs say how many."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeCache, record
from runs import capture, train
from sick import Sickness, share
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import MismatchError
from cachekd.training.collate import Collator
from cachekd.training.collate_rollouts import RolloutCollator
from cachekd.training.cut import truncate
from cachekd.training.loader import CacheDataset, summary
from cachekd.training.mixture import Mixture
from cachekd.types import Record


@pytest.fixture(scope="module")
def cache(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About one row in twenty was let go."""
    folder = tmp_path_factory.mktemp("skipped")
    data = write_rows(folder / "data.jsonl", chat_rows(24))
    with pytest.MonkeyPatch.context() as patch:
        Sickness(share(5)).install(patch)
        further = {"backend": "dummy", "on_bad_targets": "skip", "attention": "maps"}
        capture(family, data, folder / "c", **further)
    return folder / "c"


def lost_rows(item: Record, loss_mask: LossMask = LossMask.AUTO) -> int:
    rows = trained_rows(item.roles, item.prompt_length, loss_mask)
    return 0 if item.skipped is None else int((rows & item.skipped).sum())


@pytest.mark.parametrize("loss_mask", [LossMask.AUTO, LossMask.ALL])
@pytest.mark.parametrize("max_length", [None, 40])
def test_counts_and_batches_leave_them_out(
    cache: Path, loss_mask: LossMask, max_length: int | None
) -> None:
    dataset = CacheDataset(str(cache), loss_mask=loss_mask, max_length=max_length)
    records = [dataset.record(i) for i in range(len(dataset))]
    lost = sum(lost_rows(item, loss_mask) for item in records)
    assert dataset.skipped == summary(dataset)["skipped_rows"] == lost > 3
    batch = Collator(loss_mask, attention=False)(records)
    targets = batch["targets"]
    assert len(batch["rows"]) == len(targets["tail"]) == dataset.trained
    assert (torch.diff(targets["offsets"]) > 0).all(), "every trained row has a teacher"
    assert int((batch["labels"] != -100).sum()) == dataset.trained
    width = batch["input_ids"].shape[1]
    for row, item in enumerate(records):
        own = batch["rows"][batch["rows"] // width == row] % width
        wanted = trained_rows(item.roles, item.prompt_length, loss_mask)
        kept = wanted if item.skipped is None else wanted & ~item.skipped
        assert own.tolist() == kept.nonzero()[0].tolist()


def test_attention_and_packed_rows_leave_them_out(cache: Path) -> None:
    opened = cachekd.open_cache(str(cache))
    records = [item for item in opened if item.skipped is not None]
    assert len(records) > 4
    batch = Collator(LossMask.ALL, attention=True)([records[:3], records[3:]])
    positions, place = batch["attention"]["positions"].tolist(), 0
    for document, item in zip(batch["attention"]["documents"], records, strict=True):
        assert item.skipped is not None
        own = positions[place : place + document["rows"]]
        assert own == (~item.skipped).nonzero()[0].tolist()
        place += document["rows"]


def test_a_row_without_record_is_refused_still(cache: Path) -> None:
    opened = cachekd.open_cache(str(cache))
    item = next(item for item in opened if item.skipped is not None)
    with pytest.raises(MismatchError, match="were not captured"):
        Collator(LossMask.ALL)([replace(item, skipped=None)])


def test_on_policy_batches_leave_them_out_of_the_data(cache: Path) -> None:
    item = next(i for i in cachekd.open_cache(str(cache)) if i.skipped is not None)
    collator = RolloutCollator(LossMask.ALL, unscored=False)
    assert len(collator([item])["rows"]) == len(collator.rows(item))
    assert len(collator.rows(item)) == len(item.input_ids) - 1 - lost_rows(item, LossMask.ALL)


def marked(item: Record, *rows: int) -> Record:
    return replace(item, skipped=np.isin(np.arange(len(item.input_ids) - 1), rows))


def test_a_cut_record_keeps_the_marks_of_its_rows() -> None:
    cut = truncate(marked(record(range(9)), 2, 6), 5)
    assert cut.skipped is not None and cut.skipped.tolist() == [False, False, True, False]


def test_a_sample_of_nothing_else_is_left_out() -> None:
    first, second = record([1, 2, 3]), record([4, 5, 6, 7])
    whole = FakeCache([marked(first, 0, 1), second])
    whole.skipped = {first.key: (0, 1)}
    dataset = CacheDataset(whole)  # type: ignore[arg-type]
    assert len(dataset) == 1 and dataset.dropped["no trained row"] == 1
    assert dataset.trained == 3 and dataset.skipped == 2


def test_a_mixture_lacks_what_any_member_lacks() -> None:
    items = [record([1, 2, 3, 4, 5]), record([6, 7, 8])]
    one = FakeCache([marked(items[0], 1), items[1]], name="one")
    two = FakeCache([items[1], marked(items[0], 1, 3)], name="two")
    one.skipped, two.skipped = {items[0].key: (1,)}, {items[0].key: (1, 3)}
    mixture = Mixture(weights={"one": 1.0, "two": 2.0})
    dataset = CacheDataset([one, two], mixture=mixture)  # type: ignore[list-item]
    assert dataset.skipped == 2 and dataset.trained == 4
    skipped = dataset.record(0).skipped
    assert skipped is not None and skipped.tolist() == [False, True, False, True]
    assert dataset.record(1).skipped is None


OBJECTIVES: dict[str, dict[str, Any]] = {
    "kd": {},
    "reverse_kl": {},
    "span": {},
    "dkd": {},
    "sft": {},
    "with attention": {"objective_options": {"loss": {"kd": 1.0, "attention": 1.0}}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_runs_train_and_evaluate_without_them(
    family: Family, cache: Path, tmp_path: Path, name: str
) -> None:
    objective = "kd" if name == "with attention" else name
    out = train(
        family,
        (cache,),
        tmp_path / "out",
        objective=objective,
        eval_cache=str(cache),
        **OBJECTIVES[name],
    )
    run = json.loads((out / "run.json").read_text())
    assert run["counts"]["skipped_rows"] > 3 and np.isfinite(run["train_loss"])
    assert np.isfinite(run["final_eval"]["eval_loss"])
