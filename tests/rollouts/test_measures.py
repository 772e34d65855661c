"""Figures of several processes as one."""

from __future__ import annotations

from cachekd.rollouts.measures import summed


def test_a_process_that_wrote_nothing_lacks_what_others_count() -> None:
    wrote = {"rollouts": 2, "seconds": {"generate": 1.5}, "schedule": {"phi": 0.2}}
    silent = {"buffer": 0, "seconds": {"student": 0.5}, "schedule": {"phi": 0.2}}
    for figures in ([wrote, silent], [silent, wrote]):
        assert summed(figures) == {
            "rollouts": 2,
            "buffer": 0,
            "seconds": {"generate": 1.5, "student": 0.5},
            "schedule": {"phi": 0.2},
        }


def test_a_rate_is_taken_of_the_sums() -> None:
    one, other = ({"rows": n, "rows_cached": c, "hit_rate": 0.9} for n, c in ((10, 10), (30, 0)))
    assert summed([one, other])["hit_rate"] == 0.25
