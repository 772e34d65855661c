"""What was lost of a cache is made anew by the command that made it, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from damage import DAMAGES, NOT_TRUSTED, contents, flip, snapshot
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.codecs._learn import learn_prior
from cachekd.errors import CorruptCache, DataError
from cachekd.store.io import Location
from cachekd.store.manifest import read_manifest
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.teachers.dummy import DummyTeacher
from cachekd.types import Int32

FIRST, SECOND = chat_rows(20), chat_rows(12, first=15)
KINDS = ("plans", "samples", "priors")


class Runs:
    """Two runs into one cache, of data that overlaps; counts the documents that were scored."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.cache = folder / "cache"
        self.data = [
            write_rows(folder / f"{name}.jsonl", rows)
            for name, rows in (("first", FIRST), ("second", SECOND))
        ]
        self._teacher = str(family.teacher)
        self.scored: list[int] = []

    def run(self, number: int, **further: Any) -> dict[str, Any]:
        settings = {"threads": 1, "unit_tokens": 120, "batch_tokens": 60, "logits_top_k": 8}
        data = further.pop("data", self.data[number])
        return cachekd.precompute(
            PrecomputeConfig(
                teacher=self._teacher,
                backend="dummy",
                data=(str(data),),
                cache=str(self.cache),
                **{**settings, **further},
            )
        )

    def flags(self, number: int) -> list[object]:
        settings = {"threads": 1, "unit_tokens": 120, "batch_tokens": 60, "logits_top_k": 8}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        common = ["--teacher", self._teacher, "--backend", "dummy", "--cache", self.cache]
        return ["precompute", *common, "--data", self.data[number], *flags]


@pytest.fixture(scope="module")
def template(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("template")
    made = Runs(family, folder)
    for number in range(2):
        made.run(number)
    return folder / "cache"


@pytest.fixture
def runs(family: Family, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    shutil.copytree(template, tmp_path / "cache")
    made = Runs(family, tmp_path)
    score = DummyTeacher.score

    def counted(self: DummyTeacher, documents: Sequence[Int32], *args: Any) -> Any:
        made.scored.append(len(documents))
        return score(self, documents, *args)

    monkeypatch.setattr(DummyTeacher, "score", counted)
    return made


def files_of(runs: Runs, kind: str) -> list[Path]:
    """Files of a kind, that of the first run first."""
    found = sorted((runs.cache / kind).iterdir())
    manifest = read_manifest(Location(str(runs.cache)))
    assert manifest is not None and len(found) == 2
    plans = [run["plan"] for run in manifest.runs]
    if kind == "priors":
        state = read_state(Location(str(runs.cache)))
        order = [str(state.plans[plan].prior) for plan in plans]
    else:
        order = plans if kind == "plans" else list(manifest.samples)
    return sorted(found, key=lambda path: order.index(path.name.split(".")[0]))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_the_same_command_makes_it_anew(runs: Runs, kind: str, damage: str, number: int) -> None:
    before, truth = snapshot(runs.cache), contents(runs.cache)
    DAMAGES[damage](files_of(runs, kind)[number])
    assert verify(str(runs.cache)).problems
    runs.run(number)
    assert snapshot(runs.cache) == before
    assert contents(runs.cache) == truth and not verify(str(runs.cache)).problems
    if kind != "priors":
        assert not runs.scored


def test_a_prior_is_learned_of_the_first_batches_alone(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachekd.capture.trial._MAX_ROWS", 64)
    runs.cache = tmp_path / "few"
    runs.run(0)
    assert sum(runs.scored) == 20
    before, (lost,) = snapshot(runs.cache), (runs.cache / "priors").iterdir()
    runs.scored.clear()
    flip(lost)
    runs.run(0)
    assert 0 < sum(runs.scored) < 10 and snapshot(runs.cache) == before


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_where_another_prior_is_learned_its_units_are_made_anew(
    runs: Runs, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of this machine are others: what the lost prior packed cannot be read again."""
    ids = cachekd.open_cache(str(runs.cache)).sample_ids
    lost, kept = files_of(runs, "priors")
    DAMAGES[damage](lost)
    monkeypatch.setattr(
        "cachekd.capture.trial.best_prior",
        lambda records, header, *_: learn_prior(records[:1], header.vocab_size, budget=0),
    )
    runs.run(0)
    assert not lost.exists() and kept.exists() and len(list(lost.parent.iterdir())) == 2
    assert cachekd.open_cache(str(runs.cache)).sample_ids == ids
    assert not verify(str(runs.cache)).problems
    assert not verify(str(runs.cache), partial=True).problems


@pytest.mark.parametrize("kind", ["plans", "samples"])
def test_the_command_of_another_run_says_which_file_is_lost(runs: Runs, kind: str) -> None:
    victims = files_of(runs, kind)
    flip(victims[0])
    before = snapshot(runs.cache)
    for number, rows in ((1, SECOND), (1, chat_rows(3, first=90))):
        data = write_rows(runs.data[number].with_name("other.jsonl"), rows)
        with pytest.raises(CorruptCache, match=victims[0].name) as caught:
            runs.run(number, data=data)
        assert "another run" in str(caught.value)
    assert snapshot(runs.cache) == before and not runs.scored


@pytest.mark.parametrize("kind", ["plans", "samples"])
def test_files_of_two_runs_are_mended_one_after_the_other(runs: Runs, kind: str) -> None:
    before = snapshot(runs.cache)
    for victim in files_of(runs, kind):
        flip(victim)
    with pytest.raises(CorruptCache):  # its own are mended; the seal waits for the other's
        runs.run(0)
    runs.run(1)
    assert snapshot(runs.cache) == before and not runs.scored


def test_samples_from_a_file_of_another_name_are_refused(runs: Runs) -> None:
    victim = files_of(runs, "samples")[0]
    flip(victim)
    before = snapshot(runs.cache)
    moved = runs.data[0].rename(runs.data[0].with_name("moved.jsonl"))
    with pytest.raises(DataError, match=rf"{victim.name}.*files of other names"):
        runs.run(0, data=moved)
    assert snapshot(runs.cache) == before


def test_a_dry_run_mends_nothing(runs: Runs) -> None:
    for kind in KINDS:
        flip(files_of(runs, kind)[0])
        before = snapshot(runs.cache)
        runs.run(0, dry_run=True)
        assert snapshot(runs.cache) == before
        runs.run(0)


def test_a_damaged_shard_is_dropped_by_repair_and_scored_again(
    cachekd: Callable[..., Ran], runs: Runs
) -> None:
    """Precompute does not read every shard at every start: repair does, then only it is scored."""
    before = snapshot(runs.cache)
    victim = sorted((runs.cache / "logits").glob("*.parquet"))[1]
    flip(victim)
    assert cachekd(*runs.flags(0)).code == 0 and not runs.scored
    found = cachekd("verify", runs.cache, "--json")
    assert found.code == 4
    (problem,) = found.json["problems"]
    assert problem["file"] == f"logits/{victim.name}"
    named = f"units/{problem['plan']}-{problem['unit']}.json"
    mended = cachekd("verify", runs.cache, "--repair", "--json")
    assert mended.code == 3 and "cachekd precompute --teacher" in mended.json["next"]
    assert mended.json["make_anew"] == [named]
    assert cachekd("verify", runs.cache).code == 0
    assert cachekd("inspect", runs.cache, "--json").json["left_out_by_repair"] == [named]
    for number in range(2):
        assert cachekd(*runs.flags(number)).code == 0
    assert sum(runs.scored) == before_rows(before[named])
    after = snapshot(runs.cache)
    same = [n for n in before if n != named and n not in NOT_TRUSTED]
    assert all(after[name] == before[name] for name in same)
    assert "left_out_by_repair" not in cachekd("inspect", runs.cache, "--json").json
    assert cachekd("verify", runs.cache).code == 0


def before_rows(record: bytes) -> int:
    """Documents of a unit, by its commit record."""
    return int(json.loads(record)["shards"]["logits"]["rows"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_repair_took_away_is_made_anew(
    cachekd: Callable[..., Ran], runs: Runs, kind: str
) -> None:
    before, truth = snapshot(runs.cache), contents(runs.cache)
    victim = files_of(runs, kind)[0]
    flip(victim)
    assert cachekd("verify", runs.cache, "--repair").code == 3
    assert not victim.exists()
    assert cachekd(*runs.flags(0)).code == 0
    after = snapshot(runs.cache)
    assert all(after[name] == before[name] for name in before if name not in NOT_TRUSTED)
    assert contents(runs.cache) == truth and cachekd("verify", runs.cache).code == 0
    if kind != "priors":
        assert not runs.scored
