"""What is read ahead: in order, never more at once than it may be, and only a help."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from hosting import until

from cachekd.errors import StoreError
from cachekd.store.ahead import Ahead, Wanted
from cachekd.store.at_once import read_at_once


class Fetched:
    """Notes what was fetched, and the most bytes that were not read yet."""

    def __init__(self, places: list[int], size: int = 10) -> None:
        self.places, self.size = places, size
        self.order: list[int] = []
        self.at = self.most = 0
        self._lock = threading.Lock()

    def files(self, fails: int | None = None) -> list[Wanted]:
        return [
            Wanted(place, self.size, partial(self._fetch, place, fails)) for place in self.places
        ]

    def _fetch(self, place: int, fails: int | None) -> None:
        with self._lock:
            self.order.append(place)
            waiting = sum(self.size for one in self.order if one > self.at)
            self.most = max(self.most, waiting)
        if place == fails:
            raise StoreError("out of reach")

    def read(self, place: int) -> None:
        with self._lock:
            self.at = place


@pytest.mark.parametrize("limit", [10, 35, 1000])
def test_no_more_waits_to_be_read_than_may(limit: int) -> None:
    fetched = Fetched([*range(0, 300, 3)])
    with Ahead(fetched.files(), limit).running() as at:
        for place in range(300):
            fetched.read(place)
            at(place)
            if place % 3 == 0:
                until(lambda place=place: place in fetched.order)
    assert sorted(fetched.order) == fetched.places
    assert fetched.most <= limit
    assert limit < 1000 or fetched.most > 35, "as much as may"


def test_what_the_reader_has_passed_is_not_fetched() -> None:
    fetched = Fetched([0, 5, 10, 500])
    with Ahead(fetched.files(), 10).running() as at:
        until(lambda: fetched.order == [0])
        at(400)
        until(lambda: len(fetched.order) == 2)
    assert fetched.order == [0, 500]


def test_what_cannot_be_fetched_is_left_to_the_reader() -> None:
    fetched = Fetched([0, 1, 2])
    with Ahead(fetched.files(fails=1), 1000).running():
        until(lambda: len(fetched.order) == 3)
    assert sorted(fetched.order) == [0, 1, 2]


def test_files_are_asked_for_before_they_are_read_and_a_failure_is_its_own_files() -> None:
    names, asked = [str(number) for number in range(100)], list[str]()

    def read(name: str) -> bytes:
        asked.append(name)
        if name == "7":
            raise StoreError("out of reach")
        return name.encode()

    with read_at_once(names, read) as ahead:
        until(lambda: len(asked) == 16)
        for name in names:
            if name == "7":
                with pytest.raises(StoreError, match="out of reach"):
                    ahead(name)
            else:
                assert ahead(name) == name.encode()
        assert ahead("0") == b"0", "read again: for itself"
    assert sorted(asked) == sorted([*names, "0"])


def test_what_was_asked_for_and_is_not_wanted_any_more_ends() -> None:
    asked: list[str] = []
    with read_at_once(map(str, range(1000)), lambda name: asked.append(name) or b"") as ahead:
        ahead("0")
    assert len(asked) <= 17
    assert not [one for one in threading.enumerate() if one.name.startswith("cachekd-read")]
