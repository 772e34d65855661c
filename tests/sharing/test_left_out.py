"""push --keys-only and --drop-keys: what does not travel is nowhere in what does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import weights
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import GcConfig
from cachekd.errors import ConfigError, DataError, MismatchError, StoreError
from cachekd.sharing import transfer as transferring
from cachekd.store import gc
from cachekd.store.merge import merge
from cachekd.store.recode import recode
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of, fetch, send


def file_of(keys: list[bytes], path: Path) -> str:
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    return str(path)


def test_without_text_no_token_id_travels(shared: Path, tmp_path: Path) -> None:
    send(shared, tmp_path / "there", keys_only=True)
    assert not verify(str(tmp_path / "there")).problems
    for path in (tmp_path / "there" / "logits").glob("*.parquet"):
        assert pq.read_table(path, columns=["input_ids"])["input_ids"].null_count > 0
    theirs, mine = cachekd.open_cache(str(tmp_path / "there")), cachekd.open_cache(str(shared))
    assert theirs.sample_ids == mine.sample_ids
    with pytest.raises(DataError, match="without the text of"):
        theirs[0]
    met = theirs.get(mine[0].input_ids)
    np.testing.assert_array_equal(met.logits.ids, mine[0].logits.ids)
    assert theirs.manifest is not None and theirs.manifest.origins[0]["keys_only"] is True


@pytest.mark.slow
def test_the_receiver_trains_with_data_of_their_own(family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(6))
    cachekd.precompute(
        cachekd.PrecomputeConfig(
            teacher=str(family.teacher), data=(str(data),), cache=str(tmp_path / "cache"), threads=1
        )
    )
    send(tmp_path / "cache", tmp_path / "there", keys_only=True)
    settings: dict[str, Any] = {"data": (str(data),), "objective": "kd"}
    short = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "seed": 3}
    outs = []
    for name in ("cache", "there"):
        cachekd.train(
            cachekd.TrainConfig(
                cache=(str(tmp_path / name),),
                student=str(family.student),
                output_dir=str(tmp_path / f"out-{name}"),
                training={**short, "disable_tqdm": True, "per_device_train_batch_size": 2},
                **settings,
            )
        )
        outs.append(weights(tmp_path / f"out-{name}"))
    for name, value in outs[0].items():
        assert value.equal(outs[1][name]), name


def test_dropped_records_are_nowhere(shared: Path, tmp_path: Path) -> None:
    mine = cachekd.open_cache(str(shared))
    gone = [mine.samples.keys[2], mine.samples.keys[7]]
    send(shared, tmp_path / "there", drop_keys=file_of(gone, tmp_path / "keys"))
    theirs = cachekd.open_cache(str(tmp_path / "there"))
    assert len(theirs) == 10 and theirs.totals["keys"] == 10
    everything = b"".join(bytes_of(tmp_path / "there").values())
    for key in gone:
        assert key not in everything and key.hex().encode() not in everything
    assert not verify(str(tmp_path / "there")).problems
    kept = theirs.manifest.shards.keys() & mine.manifest.shards.keys()  # type: ignore[union-attr]
    assert len(kept) >= len(mine.manifest.shards) - 2  # type: ignore[union-attr]


def test_precompute_makes_what_was_dropped_again(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    mine = cachekd.open_cache(str(shared))
    keys = file_of([mine.samples.keys[2]], tmp_path / "keys")
    send(shared, tmp_path / "there", drop_keys=keys)
    made = make_cache(tmp_path / "there", rows_of(12), domain_column="domain", sort_window=1)
    assert made["documents_to_score"] == 1 and made["samples"] == 12
    assert not verify(str(tmp_path / "there")).problems


def test_attention_of_dropped_records_goes_too(attentive: Path, tmp_path: Path) -> None:
    mine = cachekd.open_cache(str(attentive))
    keys = file_of([mine.samples.keys[1]], tmp_path / "keys")
    send(attentive, tmp_path / "there", drop_keys=keys)
    assert not verify(str(tmp_path / "there")).problems
    assert len(cachekd.open_cache(str(tmp_path / "there"))) == 3
    with pytest.raises(ConfigError, match="attention"):
        send(attentive, tmp_path / "other", keys_only=True)


def test_a_push_takes_nothing_away(shared: Path, tmp_path: Path) -> None:
    send(shared, tmp_path / "there")
    before = bytes_of(tmp_path / "there")
    with pytest.raises(ConfigError, match="takes nothing away"):
        send(shared, tmp_path / "there", keys_only=True)
    assert bytes_of(tmp_path / "there") == before


def test_the_same_again_moves_nothing(shared: Path, tmp_path: Path) -> None:
    send(shared, tmp_path / "there", keys_only=True)
    again = send(shared, tmp_path / "there", keys_only=True)
    assert again["files_moved"] == 0
    fetch(tmp_path / "there", tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(tmp_path / "there")


@pytest.mark.parametrize("text", ["", "xyz", f"\n{bytes(16).hex()}\n00ff", None])
def test_a_file_that_holds_no_keys_is_refused(
    shared: Path, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    where = " line 3: expected 32 hex digits" if text and "00ff" in text else ""
    with pytest.raises(DataError, match=f"drop_keys.*{where}"):
        send(shared, tmp_path / "there", drop_keys=str(tmp_path / "keys"))
    assert not (tmp_path / "there").exists()


def test_keys_that_the_cache_does_not_hold_are_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none"):
        send(shared, tmp_path / "there", drop_keys=file_of([bytes(16)], tmp_path / "keys"))


def without_text(folder: Path) -> set[bool]:
    """Of all rows of shards in a folder, named by a seal or not, whether they are without text."""
    tables = [
        pq.read_table(path, columns=["input_ids"]) for path in folder.glob("logits/*.parquet")
    ]
    return {not row.is_valid for table in tables for row in table["input_ids"]}


@pytest.mark.parametrize("stage", ["_commit", "_seal"])
@pytest.mark.parametrize("how", ["keys_only", "drop_keys"])
def test_what_a_push_that_was_cut_off_has_left_is_refused(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    """No seal names it, but who reads the place can read the file."""
    keys = file_of([cachekd.open_cache(str(shared)).samples.keys[2]], tmp_path / "keys")
    further: dict[str, Any] = {"keys_only": True} if how == "keys_only" else {"drop_keys": keys}
    with monkeypatch.context() as within:
        within.setattr(f"cachekd.sharing.transfer.{stage}", lambda *_: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception, match="cut off"):
            send(shared, tmp_path / "there")
    before = bytes_of(tmp_path / "there")
    with pytest.raises(ConfigError, match="takes nothing away"):
        send(shared, tmp_path / "there", **further)
    assert bytes_of(tmp_path / "there") == before


@pytest.mark.parametrize("how", ["keys_only", "drop_keys"])
def test_what_was_compacted_there_is_refused(shared: Path, tmp_path: Path, how: str) -> None:
    keys = file_of([cachekd.open_cache(str(shared)).samples.keys[2]], tmp_path / "keys")
    further: dict[str, Any] = {"keys_only": True} if how == "keys_only" else {"drop_keys": keys}
    send(shared, tmp_path / "there")
    there = GcConfig(cache=str(tmp_path / "there"), compact=True, yes=True, older_than=0.0)
    gc.collect(there)
    with pytest.raises(ConfigError, match="takes nothing away"):
        send(shared, tmp_path / "there", **further)


def test_more_without_text_comes_to_what_is_there(
    cache: Path, make_cache: Maker, tmp_path: Path
) -> None:
    send(cache, tmp_path / "there", keys_only=True)
    make_cache(cache, rows_of(15), domain_column="domain", sort_window=1)
    report = send(cache, tmp_path / "there", keys_only=True)
    assert report["samples"] == 15 and report["files_skipped"] > 0
    assert without_text(tmp_path / "there") == {True}
    assert not verify(str(tmp_path / "there")).problems


@pytest.mark.parametrize("part", [{}, {"fraction": 0.5}])
def test_text_and_no_text_are_not_united(
    shared: Path, tmp_path: Path, part: dict[str, float]
) -> None:
    """Whichever record of a key is in force, a reader of one would lack the text, or leak it."""
    send(shared, tmp_path / "bare", keys_only=True)
    fetch(tmp_path / "bare", tmp_path / "here", **part)
    send(shared, tmp_path / "whole")
    for source, into in (("here", "whole"), ("whole", "here")):
        before = bytes_of(tmp_path / into)
        for bring in (send, fetch):
            with pytest.raises(MismatchError, match="without the text of"):
                bring(tmp_path / source, tmp_path / into)
        with pytest.raises(MismatchError, match="without the text of"):
            merge([str(tmp_path / source)], str(tmp_path / into))
        assert bytes_of(tmp_path / into) == before
    with pytest.raises(MismatchError, match="without the text of"):
        merge([str(tmp_path / "here"), str(shared)], str(tmp_path / "both"))
    assert not (tmp_path / "both").exists() or not list(
        (tmp_path / "both").glob("logits/*.parquet")
    )


def test_what_another_seals_first_is_looked_at_again(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transferring._check_there

    def meanwhile(*given: Any) -> None:
        monkeypatch.setattr("cachekd.sharing.transfer._check_there", real)
        send(shared, tmp_path / "there")
        real(*given)

    monkeypatch.setattr("cachekd.sharing.transfer._check_there", meanwhile)
    with pytest.raises(MismatchError, match="without the text of"):
        send(shared, tmp_path / "there", keys_only=True)
    assert cachekd.open_cache(str(tmp_path / "there"))[0].input_ids.min() >= 0


def test_recoded_without_text_stays_without(shared: Path, tmp_path: Path) -> None:
    send(shared, tmp_path / "bare", keys_only=True)
    recode([str(tmp_path / "bare")], str(tmp_path / "packed"))
    assert without_text(tmp_path / "packed") == {True}
    assert not verify(str(tmp_path / "packed")).problems


def test_a_staging_folder_that_is_not_there_is_named(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="staging: no folder can be made"):
        send(shared, tmp_path / "there", keys_only=True, staging=str(tmp_path / "missing"))
    assert not (tmp_path / "there").exists()
