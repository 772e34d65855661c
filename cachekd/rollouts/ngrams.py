"""No n-gram twice: the tokens that a text may not go on with.

In: the tokens of some texts, and what is added to them. Out: for each text the tokens that would
repeat one of its n-grams. The rule is transformers' ``no_repeat_ngram_size``: the prompt's own
n-grams count too. Padding on the left does not: transformers takes it for text (with the end token
as padding and n = 1 no response could end), so that there a response depends on its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


class NGrams:
    """The n-grams of texts that grow.

    Args:
        size: n, at least 1.
        texts: the tokens that each begins with, prompt and all.
    """

    def __init__(self, size: int, texts: Iterable[Sequence[int]]) -> None:
        self._size = size
        self._texts = [list(text) for text in texts]
        self._next: list[dict[tuple[int, ...], set[int]]] = []
        for text in self._texts:
            seen: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for end in range(size, len(text) + 1):
                seen[tuple(text[end - size : end - 1])].add(text[end - 1])
            self._next.append(seen)

    def add(self, text: int, token: int) -> None:
        """A text goes on with a token."""
        tokens = self._texts[text]
        tokens.append(token)
        if len(tokens) >= self._size:
            self._next[text][tuple(tokens[-self._size : -1])].add(token)

    def banned(self, text: int) -> set[int]:
        """Tokens that would repeat an n-gram of this text."""
        tokens, prefix = self._texts[text], self._size - 1
        if len(tokens) < prefix:
            return set()
        return self._next[text].get(tuple(tokens[len(tokens) - prefix :]), set())
