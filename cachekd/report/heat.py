"""Text whose tokens are shaded by a figure: where a model is certain, and where it is not.

In: `Passage`s: the text and the shade of each token. Out: HTML. The figures themselves are shown
under the pointer. Characters that would act on the page (controls, directions, line separators)
are shown by their number, so that a token is what can be seen.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cachekd.report.style import SHADES

_DIRECTIONS = {*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C}
_SHOWN_BY_NUMBER = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Tokens in reading order.

    Attributes:
        title: stands above the text.
        tokens: text of each.
        shades: 0 (none) to 1 (strongest) of each, None where the figure is not known.
        notes: shown under the pointer, for each.
    """

    title: str
    tokens: tuple[str, ...]
    shades: tuple[float | None, ...]
    notes: tuple[str, ...]


def heat_map(passage: Passage) -> str:
    """A passage as HTML; its direction is that of its own text."""
    spans = "".join(
        f'<span class="{_class(shade)}" title="{escape(note)}">{escape(visible(token))}</span>'
        for token, shade, note in zip(passage.tokens, passage.shades, passage.notes, strict=True)
    )
    return (
        f'<figure class="passage"><figcaption>{escape(passage.title)}</figcaption>'
        f'<p dir="auto">{spans}</p></figure>'
    )


def scale(low: str, high: str) -> str:
    """The shades from unshaded to strongest, and what both ends mean."""
    steps = "".join(f'<span class="h{step}"></span>' for step in range(SHADES))
    return f'<p class="scale">{escape(low)} {steps} {escape(high)}</p>'


def visible(text: str) -> str:
    """Text in which everything can be seen: a line's end has a sign, a control its number."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return character
    acts = ord(character) in _DIRECTIONS or unicodedata.category(character) in _SHOWN_BY_NUMBER
    return f"⟨U+{ord(character):04X}⟩" if acts else character


def _class(shade: float | None) -> str:
    return "no" if shade is None else f"h{round(min(max(shade, 0.0), 1.0) * (SHADES - 1))}"


def shades_of(values: Sequence[float | None], most: float) -> tuple[float | None, ...]:
    """Shares of the value that is shaded strongest."""
    return tuple(None if value is None else value / most for value in values)
