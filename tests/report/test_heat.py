"""Shaded text: each token once, as text, whatever it is made of."""

from __future__ import annotations

import re
from html import unescape

import pytest

from cachekd.report.heat import Passage, heat_map, scale, visible

SPANS = re.compile(r'<span class="(\w+)" title="([^"]*)">(.*?)</span>', re.DOTALL)


def _map(*tokens: str, shades: tuple[float | None, ...] | None = None) -> list[tuple[str, ...]]:
    passage = Passage(
        title="t",
        tokens=tokens,
        shades=shades or (0.0,) * len(tokens),
        notes=tuple(f"note {i}" for i in range(len(tokens))),
    )
    return [tuple(map(unescape, found)) for found in SPANS.findall(heat_map(passage))]


def test_shades_are_ten_steps_and_the_unknown_has_none() -> None:
    spans = _map("a", "b", "c", "d", "e", shades=(0.0, 0.5, 1.0, 7.0, None))
    assert [kind for kind, _, _ in spans] == ["h0", "h4", "h9", "h9", "no"]
    assert [note for _, note, _ in spans] == [f"note {i}" for i in range(5)]


def test_a_token_that_is_markup_stays_text() -> None:
    spans = _map("</script><script>alert(1)", '"><img src=x onerror=alert(1)>', "&lt;")
    assert [text for _, _, text in spans] == [
        "</script><script>alert(1)",
        '"><img src=x onerror=alert(1)>',
        "&lt;",
    ]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\u2028", "⟨U+2028⟩"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\u2066", "⟨U+2066⟩"),
        ("\x00", "⟨U+0000⟩"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\r\n", "⟨U+000D⟩↵\n"),
        (" שלום", " שלום"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\t", "\t"),
    ],
)
def test_characters_that_act_are_shown_by_number(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_the_scale_has_all_shades_and_says_what_they_mean() -> None:
    shown = scale("0 <nats>", "9 nats")
    assert [f"h{step}" in shown for step in range(11)] == [True] * 10 + [False]
    assert "0 &lt;nats&gt;" in shown


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        heat_map(Passage(title="t", tokens=("a",), shades=(), notes=()))
