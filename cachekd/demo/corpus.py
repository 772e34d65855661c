"""The text of the demo: the help topics that come with every CPython.

In: `pydoc_data.topics.topics` (the Python documentation behind ``help("for")`` and its like).
Out: short documents, split by topic into train and held-out, as Python lists or JSONL files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachekd.errors import DataError

LONGEST = 400
"""Characters of a document at most: about 128 tokens of the demo's tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Documents to train on, and documents of other topics that no training sees."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def is_heldout(topic: str) -> bool:
    """Whether a topic is held out: about one in ten, by a checksum of its name.

    The name alone decides, so that a topic is on the same side in every Python version, whatever
    topics come and go; the shipped teacher has then never seen the held-out ones.
    """
    return zlib.crc32(topic.encode()) % 10 == 4


def split_documents() -> Split:
    """The topics of this Python as documents of at most `LONGEST` characters.

    Some topics repeat paragraphs of others: a paragraph counts once, and one that a held-out topic
    has is taken out of training.

    Raises:
        DataError: this Python comes without its help topics.
    """
    topics = _topics()
    seen: set[str] = set()
    heldout = [
        document
        for name in sorted(filter(is_heldout, topics))
        for document in _documents(topics[name], seen)
    ]
    train = [
        document
        for name in sorted(topics)
        if not is_heldout(name)
        for document in _documents(topics[name], seen)
    ]
    return Split(train=tuple(train), heldout=tuple(heldout))


def write_corpus(folder: Path) -> tuple[Path, Path]:
    """Write both sides of the split as JSONL rows ``{"text": ...}``.

    Args:
        folder: made if it does not exist.

    Returns:
        The paths of ``train.jsonl`` and ``heldout.jsonl``.

    Raises:
        DataError: this Python comes without its help topics.
    """
    split = split_documents()
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, documents in zip(paths, (split.train, split.heldout), strict=True):
        rows = (json.dumps({"text": document}, ensure_ascii=False) for document in documents)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return paths


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "the demo's text is Python's own help (pydoc_data.topics); this Python comes without "
            "it. Install the full standard library, or use cachekd precompute on your own text."
        ) from error
    return dict(topics)


def _documents(text: str, seen: set[str]) -> Iterator[str]:
    """Join the paragraphs of a topic that are not in ``seen`` into documents."""
    document = ""
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if not key or key in seen:
            continue
        seen.add(key)
        for piece in _pieces(paragraph.strip("\n")):
            if document and len(document) + 2 + len(piece) > LONGEST:
                yield document
                document = ""
            document = f"{document}\n\n{piece}" if document else piece
    if document:
        yield document


def _pieces(paragraph: str) -> Iterator[str]:
    """Cut a paragraph at line ends into pieces of at most `LONGEST` characters."""
    piece = ""
    for line in paragraph.split("\n"):
        for start in range(0, max(len(line), 1), LONGEST):
            part = line[start : start + LONGEST]
            if piece and len(piece) + 1 + len(part) > LONGEST:
                yield piece
                piece = ""
            piece = f"{piece}\n{part}" if piece else part
    if piece:
        yield piece
