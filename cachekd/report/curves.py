"""One self-contained HTML page with text, tables and line plots.

In: a title, paragraphs, `Table`s and `Plot`s. Out: one file without scripts and without requests to
anywhere, which reads well on a phone, in print, and in a light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cachekd.report.svg import Plot, line_plot

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #69737d; --rule: #dde1e5;
  --paper: #fff; --c0: #0b66c3; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --faint: #98a2ac; --rule: #343b42; --paper: #14181c;
    --c0: #5aa9f5; --c1: #fb923c; --c2: #4ade80; --c3: #b79bfa; } }
@media print {
  :root { --ink: #000; --faint: #444; --rule: #ccc; --paper: #fff;
    --c0: #0b66c3; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; }
  figure, table { break-inside: avoid; } }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 42rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; }
figure { margin: 2.2rem 0 0; }
figcaption, caption { font-weight: 600; text-align: left; padding-bottom: .3rem; }
.scroll { overflow-x: auto; margin-top: 1.8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem .4rem 0; border-bottom: 1px solid var(--rule); text-align: right; }
th { color: var(--faint); font-weight: 500; font-size: .875rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 12.5px; } svg text.name { font-size: 10px; }
svg path { fill: none; stroke: var(--rule); } svg path.axis { stroke: var(--faint); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { list-style: none; margin: 0 0 .4rem; padding: 0; font-size: .9rem; }
.legend li { display: inline-block; margin-right: 1.4rem; }
.legend li::before { content: ""; display: inline-block; width: 1.6rem; margin-right: .45rem;
  vertical-align: middle; border-top: 3px solid; }
.legend .s0::before { border-color: var(--c0); } polyline.s0 { stroke: var(--c0); }
.legend .s1::before { border-top-style: dashed; border-color: var(--c1); }
.legend .s2::before { border-top-style: dotted; border-color: var(--c2); }
.legend .s3::before { border-top-style: double; border-color: var(--c3); }
polyline.s1 { stroke: var(--c1); stroke-dasharray: 7 3; }
polyline.s2 { stroke: var(--c2); stroke-dasharray: 2 3; }
polyline.s3 { stroke: var(--c3); stroke-dasharray: 10 3 2 3; }
circle.s0 { fill: var(--c0); } circle.s1 { fill: var(--c1); }
circle.s2 { fill: var(--c2); } circle.s3 { fill: var(--c3); }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of text: the first column names the row, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_page(
    path: Path,
    *,
    title: str,
    intro: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Plot],
) -> None:
    """Write the page; every text is escaped.

    Args:
        path: HTML file to write; its folder must exist.
        title: title and heading of the page.
        intro: paragraphs below the heading, plain text.
        tables: shown after the paragraphs.
        plots: shown after the tables.

    Raises:
        OSError: the file cannot be written.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f"<p>{escape(paragraph)}</p>" for paragraph in intro]
    body += [_table(table) for table in tables]
    body += [line_plot(plot) for plot in plots]
    path.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _table(table: Table) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
