"""One page about a cache, or about one or several training runs: ``cachekd report``.

In: a sealed cache, or output folders of ``cachekd train``. Out: all figures as plain JSON types,
an HTML page, and a PNG file of each figure where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cachekd.config import ReportConfig

if TYPE_CHECKING:
    from cachekd.report.curves import Section

Progress = Callable[[str, int, int], None]


def make_report(config: ReportConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the page of a cache or of runs.

    Args:
        config: see `ReportConfig`.
        progress: of a cache: called with what is done, records done and records in all (0 in all:
            it has no count).

    Returns:
        All figures of the page as plain JSON types, with ``kind`` ("cache" or "runs"), ``page``
        and ``plots``: the files that were written, where they were asked for.

    Raises:
        ConfigError: the paths are neither a cache nor runs, a setting is for the other kind, or a
            file cannot be written here.
        UnsealedCache, CorruptCache, StoreError: the cache cannot be read.
        MismatchError: teacher or tokenizer are not the cache's.
        DataError: a record of a run cannot be read.
    """
    from cachekd.overview.find import kind_of
    from cachekd.report.files import check_writable

    kind = kind_of(config)
    if config.out is not None:
        check_writable(Path(config.out), "out")
    if config.plots_dir is not None:
        check_writable(Path(config.plots_dir), "plots_dir", folder=True)
    report, page = _made(kind, config, progress)
    return {**report, "page": config.out, "plots": _write(config, page, report)}


def _made(
    kind: str, config: ReportConfig, progress: Progress | None
) -> tuple[dict[str, Any], ModuleType]:
    """The figures, and the module that makes a page of them."""
    if kind == "cache":
        from cachekd.overview import cache_page
        from cachekd.overview.cache import cache_report

        return cache_report(config, progress), cache_page
    from cachekd.overview import runs_page
    from cachekd.overview.evaluated import evaluated
    from cachekd.overview.record import load_runs
    from cachekd.overview.runs import runs_report

    runs = load_runs(config.paths)
    return runs_report(runs, evaluated(config.evaluation, runs)), runs_page


def _write(config: ReportConfig, page: ModuleType, report: dict[str, Any]) -> list[str]:
    """Write page and pictures; the paths of these."""
    from cachekd.errors import StoreError
    from cachekd.report.curves import write_page

    sections: list[Section] = page.sections_of(report)
    title, intro = page.title_of(report), page.intro_of(report)
    figures = [plot for section in sections for plot in section.plots]
    try:
        if config.out is not None:
            write_page(Path(config.out), title=title, intro=intro, sections=sections)
        if config.plots_dir is None:
            return []
        from cachekd.report.png import write_pngs

        return [str(path) for path in write_pngs(figures, Path(config.plots_dir))]
    except OSError as error:
        raise StoreError(f"cannot write the report: {error}") from error
