"""Words of a text, and phrases of words by rule: what several chunkers are made of."""

from __future__ import annotations

import re

Span = tuple[int, int]

_WORD = re.compile(r"\w+(?:['\u2019\-]\w+|[.,]\d+)*")
_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every either neither no all both such
    my your his her its our their whose
    i you he she it we they me him us them who whom which what
    about above across after against along among around as at before behind below beneath beside
    between beyond by despite down during except for from in inside into like near of off on onto
    out outside over past per since through throughout till to toward towards under until up upon
    via with within without
    and but or nor so yet if because although though unless while whereas whether when where why
    how than then
    am is are was were be been being do does did have has had can could may might must shall
    should will would not
    """.split()
)


def words_of(text: str) -> list[Span]:
    """Words as [start, end); numbers, and words with hyphens or apostrophes, are one each."""
    return [match.span() for match in _WORD.finditer(text)]


def phrases_of(text: str) -> list[Span]:
    """Phrases: words up to punctuation, a line's end, or a function word after another word.

    A phrase so begins with its function words and ends with what they introduce: "the old house",
    "in a small town".
    """
    phrases: list[Span] = []
    after_content = False
    for start, end in words_of(text):
        content = text[start:end].lower() not in _FUNCTION_WORDS
        gap = text[phrases[-1][1] : start] if phrases else ""
        parted = bool(gap.strip()) or "\n" in gap
        if not phrases or parted or (after_content and not content):
            phrases.append((start, end))
        else:
            phrases[-1] = (phrases[-1][0], end)
        after_content = content
    return phrases
