"""A capture killed, failing or losing power at any change of the disk ends as if undisturbed.

The harness stands in `crashes`, `crash_points` and `powerloss`, and runs in a process of its own,
for it forks. The default run takes every eleventh fault point, the one marked ``reliability`` all
or every second, `benchmarks/crashes.py` all.
"""

from __future__ import annotations

import pytest
from harness import ran


def test_killed_at_some_changes_of_the_disk() -> None:
    found = ran("crash_points.py", "kill", "--step", 11)
    assert found["done"] == -(-found["changes"] // 11) > 5


def test_a_disk_that_fails_at_some_changes() -> None:
    assert sum(ran("crash_points.py", "fail", "--step", 11)["done"].values()) > 10


def test_files_that_the_system_limits_in_size() -> None:
    found = ran("crash_points.py", "limit")["done"]
    assert found["refused"] > 3 and found["enough"] >= 1


@pytest.mark.reliability
@pytest.mark.parametrize(("mode", "step"), [("kill", 1), ("torn", 2)])
def test_killed_at_every_change_of_the_disk(mode: str, step: int) -> None:
    found = ran("crash_points.py", mode, "--step", step)
    assert found["done"] == -(-found["changes"] // step) > 50


@pytest.mark.reliability
def test_one_of_two_processes_is_killed() -> None:
    assert ran("crash_points.py", "two", "--step", 2)["done"] > 20


@pytest.mark.reliability
def test_the_run_that_continues_is_killed_too() -> None:
    assert ran("crash_points.py", "double", "--times", 30)["done"] > 30


@pytest.mark.reliability
def test_a_disk_that_fails_at_every_second_change() -> None:
    found = ran("crash_points.py", "fail", "--step", 2)["done"]
    assert all(found[f"{code} write"] > 4 for code in ("EIO", "ENOSPC", "EDQUOT"))
    assert found["EIO sync"] > 12 and sum(found.values()) > 90


@pytest.mark.reliability
def test_every_state_that_a_loss_of_power_may_leave() -> None:
    found = ran("powerloss.py")
    assert found["bad"] == 0 and found["states"] >= 200 and found["resumed"] > 10


@pytest.mark.reliability
def test_without_syncs_a_loss_of_power_is_seen_to_lose_data() -> None:
    """So the check above can fail."""
    assert ran("powerloss.py", "--no-sync")["bad"] == 20
