"""What a real process asks the system for, seen and disturbed by strace."""

from __future__ import annotations

import pytest
from harness import can_trace, ran

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here"),
]


def test_nothing_has_a_name_before_it_is_on_the_disk() -> None:
    found = ran("syscalls.py", "order")
    assert found["published"] > 10 and found["wrong"] == 0


def test_the_check_fails_where_syncs_do_nothing() -> None:
    found = ran("syscalls.py", "order", "--no-sync")
    assert found["wrong"] >= found["published"] > 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_killed_at_a_sync_a_link_or_a_rename_by_the_system(first: int) -> None:
    """Eight of 24 points each."""
    found = ran("syscalls.py", "kill", "--points", 24, "--part", first, 3, timeout=580)["done"]
    assert sum(found.values()) == 8 and found["fsync"] and found["linkat"]
