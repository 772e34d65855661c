"""One self-contained HTML page with text, tables, figures and shaded text.

In: a title, paragraphs, `Table`s, figures (`Plot`, `Bars`, `Histogram`) and `Section`s of these.
Out: one file without scripts and without requests to anywhere, which reads well on a phone, in
print, and in a light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cachekd.report.figures import Figure, drawn
from cachekd.report.files import write_whole
from cachekd.report.heat import Passage, heat_map, scale
from cachekd.report.style import STYLE

_COLUMNS = 8  # that fit beside each other within the text's width
_FIGURE = 16  # letters of a figure with its unit or deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of text: the first column names the row, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        heading: stands above it.
        text: paragraphs, plain text.
        tables: shown after the paragraphs.
        plots: figures, shown after the tables.
        passages: shaded text, shown last.
        shades: what no shade and the strongest shade of the passages mean.
    """

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Figure] = ()
    passages: Sequence[Passage] = ()
    shades: tuple[str, str] = ("least", "most")


def write_page(
    path: Path,
    *,
    title: str,
    intro: Sequence[str],
    tables: Sequence[Table] = (),
    plots: Sequence[Figure] = (),
    sections: Sequence[Section] = (),
) -> None:
    """Write the page, whole or not at all; every text is escaped.

    Args:
        path: HTML file to write; its folder is made.
        title: title and heading of the page.
        intro: paragraphs below the heading, plain text.
        tables: shown after the paragraphs.
        plots: figures, shown after the tables.
        sections: further parts, each with a heading.

    Raises:
        OSError: the file cannot be written.
    """
    first = Section(heading="", text=intro, tables=tables, plots=plots)
    body = [f"<h1>{escape(title)}</h1>", _section(first), *map(_section, sections)]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    # Half a character (a lone surrogate of a JSON file) has no bytes.
    write_whole(path, page.encode("utf-8", "replace"))


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"] if section.heading else []
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text]
    parts += map(_table, section.tables)
    parts += map(drawn, section.plots)
    if section.passages:
        parts += [scale(*section.shades), *map(heat_map, section.passages)]
    return "\n".join(parts)


def _cell(cell: str) -> str:
    """A cell; a figure stays on one line with its unit."""
    figure = " " in cell and cell.removeprefix("-")[:1].isdigit() and len(cell) <= _FIGURE
    return f"<td{' class=figure' if figure else ''}>{escape(cell)}</td>"


def _table(table: Table) -> str:
    wide = " wide" if len(table.header) > _COLUMNS else ""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    return (
        f'<div class="scroll{wide}"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
