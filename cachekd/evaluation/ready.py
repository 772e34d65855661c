"""Everything that an evaluation needs but the weights: checked, and worded for every model.

In: settings. Out: `Ready`: examples, candidates with the tokens of each, teacher and cache. An
example that cannot be used with one model's tokenizer is left out for all, so that all are measured
on the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cachekd.config import EvaluateConfig
from cachekd.data.nouns import BadRow
from cachekd.errors import ConfigError
from cachekd.evaluation.examples import Examples, read_examples
from cachekd.evaluation.models import (
    Found,
    check_tokenizer,
    find_models,
    find_teacher,
    tokenizer_of,
)
from cachekd.evaluation.tokens import Tokens, tokenise
from cachekd.store.reader import Cache, open_cache
from cachekd.store.tokenizer import TokenizerFacts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A model to evaluate, its tokenizer, and the examples as its tokens."""

    found: Found
    tokenizer: Any
    tokens: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """What is evaluated, on what, against whom."""

    examples: Examples
    candidates: tuple[Candidate, ...]
    teacher: Found | None
    cache: Cache | None


def ready(config: EvaluateConfig) -> Ready:
    """Find, read, compare and tokenise; loads no weight.

    Raises:
        CachekdError: whatever is wrong.
    """
    models = find_models(config)
    teacher = find_teacher(config, models)
    cache = _open(config, models)
    examples = read_examples(config)
    tokenizers = [tokenizer_of(model) for model in models]
    clock = datetime.now().replace(microsecond=0)
    worded = [tokenise(examples.items, one, config, clock) for one in tokenizers]
    bad = {
        place: item
        for tokens in worded
        for place, item in enumerate(tokens)
        if isinstance(item, BadRow)
    }
    examples = examples.without(bad, config.on_bad)
    candidates = []
    for model, tokenizer, tokens in zip(models, tokenizers, worded, strict=True):
        kept = [item for place, item in enumerate(tokens) if place not in bad]
        good = tuple(item for item in kept if isinstance(item, Tokens))
        for one in filter(None, (model, teacher)):
            _check_room(one, good, examples, config)
        candidates.append(Candidate(found=model, tokenizer=tokenizer, tokens=good))
    return Ready(examples=examples, candidates=tuple(candidates), teacher=teacher, cache=cache)


def _open(config: EvaluateConfig, models: Sequence[Found]) -> Cache | None:
    """The cache that is asked for, known to be of the models' tokenizer."""
    if config.cache is None:
        return None
    cache = open_cache(config.cache)
    source = cache.identity.source
    tokenizer = TokenizerFacts(digest=source["tokenizer"], vocab_size=source["vocab_size"])
    check_tokenizer(models, tokenizer, f"the teacher of the cache {cache.name}")
    return cache


def _check_room(
    found: Found, tokens: Sequence[Tokens], examples: Examples, config: EvaluateConfig
) -> None:
    """Refuse prompts that leave no room for a response in a model's context."""
    longest = max(range(len(tokens)), key=lambda i: len(tokens[i].prompt))
    length, row = len(tokens[longest].prompt), examples.items[longest]
    room = config.max_new_tokens
    if found.context is not None and length + room > found.context:
        raise ConfigError(
            f"{found.who} ({found.path}): expected a prompt and {room} new tokens within its "
            f"context of {found.context}; found a prompt of {length} ({row.source} row {row.row}). "
            "Lower --max-new-tokens, or cut prompts with --max-prompt-length"
        )
