"""An imported cache is trained on as far as what it holds goes; exports are read by others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanging import brought_in
from runs import TRAINING, weights
from tiny import Family, Ran

import cachekd
from cachekd import ExportConfig, TrainConfig, export_cache, open_cache
from cachekd.errors import ConfigError
from cachekd.exchange import _export
from cachekd.objectives import build
from cachekd.training.checks import check_needs

Run = Callable[..., Ran]


def exported(captured: Path, out: Path, name: str, **further: object) -> Path:
    export_cache(ExportConfig(cache=str(captured), format=name, out=str(out), **further))
    return out


@pytest.fixture(scope="module")
def imports(
    captured: Path, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The captured cache by way of three formats: all known, bounds, and normalised values."""
    root = tmp_path_factory.mktemp("imports")
    settings: dict[str, dict[str, object]] = {
        "arrow": {},
        "distillkit": {},
        "axolotl": {"values": "renormalised"},
    }
    for name, further in settings.items():
        out = exported(captured, root / f"out-{name}", name, **further)
        brought_in(out, family, root / name, format=name)
    return {name: root / name for name in settings}


@pytest.mark.slow
def test_the_same_student_comes_of_a_cache_and_its_import(
    imports: dict[str, Path], captured: Path, family: Family, tmp_path: Path
) -> None:
    """By way of plain lists everything comes back; a batch is all samples, in another order."""
    plain = {"per_device_train_batch_size": 12, "max_steps": 4, "optim": "sgd"}
    students = []
    for cache in (captured, imports["arrow"], imports["axolotl"]):
        out = tmp_path / cache.name
        cachekd.train(
            TrainConfig(
                cache=(str(cache),),
                student=str(family.student),
                output_dir=str(out),
                training={**TRAINING, **plain, "learning_rate": 1.0},
            )
        )
        students.append(weights(out))
    start, (first, second, other) = weights(family.student), students
    moved = max(float((first[name] - start[name]).abs().max()) for name in first)
    far = [max(float((one[n] - first[n]).abs().max()) for n in first) for one in (second, other)]
    assert far[0] < 1e-5 * moved < 1e-2 * moved < far[1], (far, moved)


def test_training_tells_what_is_asserted_and_refuses_what_is_missing(
    imports: dict[str, Path],
    family: Family,
    cachekd: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(name: str, objective: str, *further: object) -> Ran:
        flags = ("--student", family.student, "--output-dir", tmp_path / f"{name}-{objective}")
        flags += ("--use-cpu", "true", "--max-steps", "2", "--learning-rate", "1e-3")
        return cachekd(
            "train", "--cache", imports[name], *flags, "--objective", objective, *further
        )

    done = run("distillkit", "kd")
    assert done.code == 0, done.err
    assert "its teacher 'org/t' and its tokenizer are asserted, not known" in caplog.text
    assert "log-probability of the next token: bound where it is no entry" in caplog.text
    assert "(asserted)" in (tmp_path / "distillkit-kd" / "report.html").read_text()
    refused = run("distillkit", "dkd")
    assert refused.code == 2 and "--target argmax" in refused.err, refused.err
    refused = run("axolotl", "reverse_kl")
    assert refused.code == 2 and "the mass outside is not known" in refused.err, refused.err
    refused = run("distillkit", "kd", "--temperature", "2")
    assert refused.code == 2 and "lacks temperature 2" in refused.err, refused.err
    assert not (tmp_path / "distillkit-dkd").exists()


@pytest.mark.parametrize(
    ("name", "objective", "options", "refused"),
    [
        ("arrow", "dkd", {}, None),
        ("arrow", "reverse_kl", {}, None),
        ("distillkit", "dkd", {"target": "argmax"}, None),
        ("distillkit", "jsd", {}, None),
        ("axolotl", "kd", {}, None),
        ("axolotl", "sft", {}, None),
        ("axolotl", "kd", {"tail": "flat"}, "the mass outside is not known"),
        ("axolotl", "dkd", {"target": "argmax"}, "the mass outside is not known"),
        ("axolotl", "skd", {}, "the mass outside is not known"),
        (
            "distillkit",
            "sum",
            {"terms": {"sft": {"weight": 1.0}, "dkd": {"weight": 1.0}}},
            "log-probability is a bound",
        ),
    ],
)
def test_what_an_import_serves(
    name: str,
    objective: str,
    options: dict[str, Any],
    refused: str | None,
    imports: dict[str, Path],
) -> None:
    needs = build(objective, options).needs()
    told = nullcontext() if refused is None else pytest.raises(ConfigError, match=refused)
    with told:
        check_needs(needs, [open_cache(str(imports[name]))])


def test_exports_are_data_sets(
    captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads every export as one split, and its rows are the records."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    monkeypatch.setattr(_export, "_TOKENS", 100)
    cache = open_cache(str(captured))
    columns = {
        "arrow": ("token_ids", "logprobs"),
        "axolotl": ("target_token_ids", "target_logprobs"),
        "distillkit": ("bytepacked_indices", "compressed_logprobs"),
    }
    for name, (ids, logs) in columns.items():
        out = exported(captured, tmp_path / name, name, shard_size="2KB")
        assert len(list(out.glob("train-*.parquet"))) > 1
        settings = {"data_dir": str(out), "cache_dir": str(tmp_path / "hf"), "split": "train"}
        rows = load_dataset("parquet", **settings)
        assert rows.num_rows == len(cache)
        for row, record in zip(rows, cache, strict=True):
            assert row["input_ids"] == record.input_ids.tolist()
            assert len(row[ids]) == len(row[logs]) == record.logits.rows + (name == "axolotl")
            if name != "distillkit":
                best = record.logits.ids[record.logits.offsets[:-1]]
                assert [own[0] for own in row[ids]][: len(best)] == best.tolist()
                top = np.array([own[0] for own in row[logs]][: len(best)], np.float32)
                assert (top == record.logits.logprobs[record.logits.offsets[:-1]]).all()


def test_axolotl_rows_are_as_its_collator_takes_them(captured: Path, tmp_path: Path) -> None:
    """Lists of one length in every row, no infinities, and masks where labels are trained."""
    import pyarrow.parquet as pq

    out = exported(captured, tmp_path / "out", "axolotl", k=7)
    (file,) = out.glob("*.parquet")
    names = ("labels", "attention_mask", "target_logprobs", "target_token_ids", "target_mask")
    for row in pq.read_table(file).to_pylist():
        length = len(row["input_ids"])
        assert {len(row[name]) for name in names} == {length}
        for column in names[2:]:
            assert {len(own) for own in row[column]} == {7}
        assert np.isfinite(row["target_logprobs"]).all()
        assert all(len({*own}) == 7 for own in row["target_token_ids"][:-1])
        trained = [label != -100 for label in row["labels"]]
        assert [any(own) for own in row["target_mask"]] == [*trained[1:], False]
        assert all(
            label in (-100, token)
            for label, token in zip(row["labels"], row["input_ids"], strict=True)
        )
