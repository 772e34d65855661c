"""Places that hold other bytes of the same units, are out of reach, or let nothing be deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekd.errors import StoreError
from cachekd.sharing.content import sealed_content
from cachekd.store.io import Location
from cachekd.store.recode import recode
from cachekd.store.remote import RemoteFolder
from cachekd.store.verify import verify

from .transfers import bytes_of, fetch, send


@pytest.mark.parametrize("part", [{}, {"fraction": 0.5}])
def test_shards_of_units_that_others_made_stay_here(
    shared: Path, tmp_path: Path, part: dict[str, float]
) -> None:
    """The same plan, captured with other bytes: of a unit the record that was first stays."""
    recode([str(shared)], str(tmp_path / "other"))
    fetch(tmp_path / "other", tmp_path / "there", **part)
    before = set((tmp_path / "there" / "logits").glob("*.parquet"))
    report = send(shared, tmp_path / "there")
    named = sealed_content(Location(str(tmp_path / "there"))).manifest.shards
    units = len(list((shared / "units").iterdir()))
    assert report["keys"] == 12 and len(named) == units
    after = set((tmp_path / "there" / "logits").glob("*.parquet"))
    assert {path.stem for path in after} == set(named) and before <= after
    if not part:
        assert report["files_moved"] == 0 and after == before
    assert not verify(str(tmp_path / "there")).problems


def test_what_the_network_gave_up_is_not_begun_again(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads and writes were tried again below for as long as anybody waits."""
    place, tries = f"memory://{tmp_path}/news", list[str]()

    def refuse(location: Location, name: str, *further: object, **named: object) -> None:
        tries.append(name)
        raise StoreError("no room")

    monkeypatch.setattr(Location, "take", refuse)
    with pytest.raises(StoreError, match="no room"):
        send(shared, place, jobs=1)
    assert len(tries) == 1


def test_a_place_where_nothing_can_be_deleted_takes_a_cache(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: RemoteFolder, name: str) -> None:
        raise StoreError(f"{name}: access denied")

    monkeypatch.setattr(RemoteFolder, "remove", refuse)
    place = f"memory://{tmp_path}/team/news"
    send(shared, place)
    assert caplog.text.count("access denied") == 1
    assert bytes_of(place) == bytes_of(shared)
