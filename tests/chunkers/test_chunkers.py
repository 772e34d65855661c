"""Chunkers: phrases by rule, the controls, and the tagger that need not be installed."""

from __future__ import annotations

import builtins
import subprocess
import sys
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.chunkers import build_chunker
from cachekd.errors import ConfigError
from cachekd.plugins import available

TEXT = (
    "The old house in the small town is empty, and nobody's mother-in-law lives there.\nWhy? 3.14"
)


def _parts(name: str, text: str) -> list[str]:
    return [text[start:end] for start, end in build_chunker(name).spans(text)]


def test_phrases_begin_at_function_words_and_end_at_punctuation() -> None:
    assert _parts("phrases", TEXT) == [
        "The old house",
        "in the small town",
        "is empty",
        "and nobody's mother-in-law lives there",
        "Why",
        "3.14",
    ]
    assert _parts("phrases", "今天天气很好。我们去公园。") == ["今天天气很好", "我们去公园"]


def test_controls() -> None:
    assert _parts("adjacent", TEXT) == [TEXT]
    chunks = _parts("random", TEXT)
    assert len(chunks) == len(_parts("phrases", TEXT))
    assert chunks == _parts("random", TEXT), "a function of the text"
    assert chunks != _parts("phrases", TEXT)
    assert chunks[0].startswith("The") and chunks[-1].endswith("3.14")


@settings(deadline=None)
@given(text=st.text() | st.text(alphabet="a the,. \n'-1é中\U0001f600"))
def test_spans_are_ascending_and_disjoint_whatever_the_text(text: str) -> None:
    for name in ("adjacent", "phrases", "random"):
        spans = build_chunker(name).spans(text)
        borders = [border for span in spans for border in span]
        assert borders == sorted(borders) and all(start < end for start, end in spans)
        assert not spans or 0 <= borders[0] <= borders[-1] <= len(text)
    phrases = build_chunker("phrases").spans(text)
    assert len(build_chunker("random").spans(text)) == len(phrases)


def test_an_unknown_chunker_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"no chunker 'phrase'.*Did you mean 'phrases'"):
        build_chunker("phrase")


def test_without_the_tagger_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "nltk":
            raise ImportError("no nltk")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"cachekd\[nltk\].*--chunker phrases"):
        build_chunker("nltk")


class _Tree(list[Any]):
    def leaves(self) -> list[Any]:
        return list(self)


def _nltk(*, data: bool) -> types.ModuleType:
    """A stand-in: tags by a table, and takes runs of nouns and their determiners as phrases."""
    import re

    class Words:
        def __init__(self, pattern: str) -> None:
            self._pattern = re.compile(pattern)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in self._pattern.finditer(text)]

    class Parser:
        def __init__(self, grammar: str) -> None:
            assert all(name in grammar for name in ("NP", "VP", "PP"))

        def parse(self, tagged: list[tuple[str, str]]) -> list[Any]:
            parts: list[Any] = []
            for word, tag in tagged:
                if tag == "N" and parts and isinstance(parts[-1], _Tree):
                    parts[-1].append(word)
                else:
                    parts.append(_Tree([word]) if tag == "N" else (word, tag))
            return parts

    def pos_tag(words: list[str]) -> list[tuple[str, str]]:
        if not data:
            raise LookupError("resource not found")
        return [(word, "N" if word in ("the", "old", "house") else "-") for word in words]

    module = types.ModuleType("nltk")
    vars(module).update(pos_tag=pos_tag, RegexpTokenizer=Words, RegexpParser=Parser)
    return module


def test_phrases_of_a_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", _nltk(data=True))
    assert _parts("nltk", "So: the old house, the end.") == ["the old house", "the"]
    assert _parts("nltk", "") == []
    monkeypatch.setitem(sys.modules, "nltk", _nltk(data=False))
    with pytest.raises(ConfigError, match=r"nltk\.downloader averaged_perceptron_tagger_eng"):
        build_chunker("nltk")


def test_chunkers_need_no_torch() -> None:
    code = (
        "import sys; from cachekd.plugins import available, find\n"
        "[find('chunkers', name) for name in available('chunkers')]\n"
        "print([m for m in ('torch', 'transformers', 'nltk') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert available("chunkers") == ["adjacent", "nltk", "phrases", "random"]
