"""Sizes that no writer writes: refused, each in little memory and time, in a child of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from confined import run_confined

from cachekd.data.limits import ALL

ROOT = Path(__file__).parents[2]
MEMORY = 200_000_000


def check(cache: Path, every: bool, least: int) -> None:
    found = run_confined("forged_sizes", cache, every=every)
    assert len(found) >= least
    assert {name: was["told"] for name, was in found.items() if was["ended"] != "refused"} == {}
    large = {name: was["resident"] for name, was in found.items() if was["resident"] > MEMORY}
    assert large == {}


def test_sizes_that_cannot_be_are_refused(cache: Path) -> None:
    check(cache, False, 300)


@pytest.mark.reliability
def test_every_size_at_every_field_is_refused(cache: Path) -> None:
    check(cache, True, 500)


def test_the_limits_are_printed_and_written_down(cachekd) -> None:  # type: ignore[no-untyped-def]
    """By the command, as text and as JSON, and on the format page."""
    page = (ROOT / "README.md").read_text().split("## The format")[1].split("## The tree")[0]
    as_json, as_text = cachekd("limits", "--json"), cachekd("limits")
    assert as_json.code == as_text.code == 0
    assert as_json.json == {limit.name: limit.most for limit in ALL}
    for limit in ALL:
        power = limit.most.bit_length() - 1
        number = f"2^{power}" if limit.most == 1 << power and power >= 10 else str(limit.most)
        assert f"`{limit.name}` {number}" in page.replace("\n", " "), limit.name
        (line,) = [row for row in as_text.out.splitlines() if row.startswith(f"{limit.name} ")]
        assert f"{limit.most:,}" in line and limit.what in line


def test_bombs_take_no_more_than_their_shape_allows(cache: Path) -> None:
    found = run_confined("forged_bombs", cache, traced=True)
    assert len(found) >= 10
    assert {name: was["told"] for name, was in found.items() if was["ended"] != "refused"} == {}
    large = {name: was["allocated"] for name, was in found.items() if was["allocated"] > 1 << 20}
    assert large == {}
