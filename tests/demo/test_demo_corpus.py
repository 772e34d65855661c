"""The demo's text: same split each time, and nothing held out leaks into training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cachekd.demo.corpus import LONGEST, is_heldout, split_documents, write_corpus
from cachekd.errors import DataError


def _paragraphs(documents: tuple[str, ...]) -> set[str]:
    return {" ".join(part.split()) for document in documents for part in document.split("\n\n")}


def test_split_is_the_same_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_corpus(tmp_path / "a")]
    second = [path.read_bytes() for path in write_corpus(tmp_path / "b")]
    assert first == second
    assert split_documents() == split_documents()


def test_sides_share_no_paragraph_and_no_topic() -> None:
    split = split_documents()
    assert not set(split.train) & set(split.heldout)
    assert not _paragraphs(split.train) & _paragraphs(split.heldout)
    assert len(split.train) > 5 * len(split.heldout) > 100


def test_side_of_a_topic_depends_on_its_name_alone() -> None:
    # Changing these would let the shipped teacher be judged on topics that it was trained on.
    assert [name for name in ("assignment", "break", "try", "for", "with") if is_heldout(name)] == [
        "assignment",
        "break",
        "try",
    ]


def test_documents_are_short_and_not_empty() -> None:
    split = split_documents()
    lengths = [len(document) for document in split.train + split.heldout]
    assert min(lengths) > 0
    assert max(lengths) <= LONGEST


def test_topics_are_cut_without_losing_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydoc_data.topics

    long_line, lines = "x" * 1000, "\n".join(f"line {i}" for i in range(100))
    topics = {"for": f"{long_line}\n\nshared\n\n{lines}", "try": "shared\n\nown"}
    monkeypatch.setattr(pydoc_data.topics, "topics", topics)
    split = split_documents()
    assert split.heldout == ("shared\n\nown",)
    kept = "".join("".join(split.train).split())
    assert kept == "".join((long_line + lines).split())


def test_rows_are_read_back(tmp_path: Path) -> None:
    train, heldout = write_corpus(tmp_path / "corpus")
    split = split_documents()
    for path, documents in ((train, split.train), (heldout, split.heldout)):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows == [{"text": document} for document in documents]


def test_python_without_topics_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="pydoc_data"):
        split_documents()
