"""Chunkers: text to phrases. This folder holds plugins and nothing else, one file a way to cut.

To add one, write ``cachekd/chunkers/<name>.py`` with a class like `Chunker` and the line
``PLUGIN = <class>``; ``--chunker <name>`` finds it. Helper modules start with ``_``.
"""

from __future__ import annotations

from typing import Protocol

from cachekd.plugins import find


class Chunker(Protocol):
    """A way to cut text into phrases. It must be picklable: loader workers use it."""

    def __init__(self) -> None:
        """Refuse with a `ConfigError` where something that it rests on is not installed."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Phrases as [start, end) in characters: ascending, disjoint, and a function of the text.

        What lies between them belongs to no phrase.
        """
        ...


def build_chunker(name: str) -> Chunker:
    """The chunker of this name.

    Raises:
        ConfigError: there is none, or what it rests on is not installed.
    """
    chunker: Chunker = find("chunkers", name)()
    return chunker
