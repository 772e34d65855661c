"""Processes that fill one cache and are killed at random; a reader that looks on meanwhile.

The larger sizes are those of ``benchmarks/crashes.py``.
"""

from __future__ import annotations

import pytest
from harness import ran

pytestmark = pytest.mark.reliability


def test_killed_at_random_moments_and_once_more() -> None:
    found = ran("crash_runs.py", "random", "--times", 40, "--double", 10)
    assert found["killed"] > 10 and found["with commits"] > 0


def test_eight_processes_two_of_them_killed() -> None:
    found = ran("crash_runs.py", "many", "--rounds", 2)
    assert found["units"] >= 50 and found["killed"] > 0


def test_a_reader_sees_whole_units_alone_while_they_are_written() -> None:
    found = ran("crash_runs.py", "reader", "--kills", 1)
    assert found["units"] >= 500 and found["sizes"] > 5


def test_any_number_of_processes_continues_what_any_number_began() -> None:
    found = ran("crash_runs.py", "worlds")
    assert found["pairs"] == 25 and found["killed"] > 10
