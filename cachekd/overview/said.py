"""What a report comes to, in a few sentences for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def said(report: Mapping[str, Any]) -> list[str]:
    """The first paragraphs of the page."""
    if report["kind"] == "cache":
        from cachekd.overview.cache_page import intro_of

        return intro_of(report)
    from cachekd.overview.runs_page import intro_of as intro_of_runs

    return intro_of_runs(report)
