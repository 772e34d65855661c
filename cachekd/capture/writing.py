"""Responses that the teacher is to write: what is asked for, what is there, and what is missing.

Comes in: prompts, settings, and what a cache holds of responses. Goes out: a `Writing`, and the
samples that it makes: each prompt with its response, or, where that is still to be written, with as
many tokens as it may have at most, so that lengths and bytes are upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cachekd.config import PrecomputeConfig
from cachekd.data.digests import json_id
from cachekd.data.lengths import longest
from cachekd.data.packed import Keys, Places
from cachekd.data.samples import Prepared
from cachekd.data.spool import SpooledSamples
from cachekd.errors import ConfigError
from cachekd.plugins import find
from cachekd.store.generated import Responses, draw_key, load_responses
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.samples import keys_of
from cachekd.teachers import TeacherFacts, WritingSpec
from cachekd.types import Int32, Int64, Role, Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Writing:
    """What a run asks its teacher to write: ``copies`` responses to each of P prompts.

    Attributes:
        prompts: the prompts, and what became of rows that have none.
        prompt_keys: sample key of each prompt's token ids [P].
        copies: responses to each prompt; number n of prompt p is sample p * copies + n.
        draws: what each response is found by [P * copies]; equal prompts have equal responses.
        responses: what is written.
        places: of each response among these, or -1 [P * copies].
        recipe: what the responses were written with; all that decides them beside the prompt.
        spec: the same for the teacher.
        limit: most tokens of prompt and response together.
    """

    prompts: Prepared
    prompt_keys: Keys
    copies: int
    draws: Keys
    responses: Responses
    places: Int64
    recipe: Mapping[str, Any]
    recipe_id: str
    spec: WritingSpec
    limit: int

    def missing(self) -> Int64:
        """The different responses that are not written: their first places, ascending."""
        firsts = Places(self.draws).firsts()
        return firsts[self.places[firsts] < 0]

    def budgets(self, places: Int64) -> Int64:
        """Tokens that each of these responses may have."""
        lengths = self.prompts.samples.lengths()[places // self.copies]
        return np.minimum(self.spec.max_new_tokens, self.limit - lengths)

    def lengths(self) -> Int64:
        """Tokens of each prompt with its response, at most."""
        every = np.arange(len(self.draws))
        return self.prompts.samples.lengths()[every // self.copies] + self.budgets(every)

    def reloaded(self, location: Location) -> Writing:
        """The same with all that is written by now."""
        responses = _load(location, self.recipe_id, self.spec)
        return replace(self, responses=responses, places=responses.find(self.draws))

    def unfinished(self) -> int:
        """Responses that are written and have no end token."""
        last = self.responses.last_tokens(self.places[self.places >= 0])
        return int((~np.isin(last, self.spec.end_tokens)).sum())

    def provenance(self) -> dict[str, Any]:
        """What a plan says of it."""
        counts = {"written": len(self.draws), "unfinished": self.unfinished()}
        return {**self.recipe, "samples": self.copies, **counts}


def new_tokens(config: PrecomputeConfig) -> int | None:
    """Room that a prompt must leave; None where responses are those of the data.

    Raises:
        ConfigError: the backend cannot write.
    """
    if config.generate == "none":
        return None
    if not callable(getattr(find("teachers", config.backend), "write", None)):
        raise ConfigError(
            f"generate {config.generate}: the backend {config.backend} scores text and writes "
            "none; use --backend hf, or leave --generate out"
        )
    return config.max_new_tokens


def writing_of(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    identity: Identity,
    tokenizer: Any,
    location: Location,
    prompts: Prepared,
) -> Writing:
    """What a run asks its teacher to write, and what is there of it.

    Raises:
        CorruptCache: a file of responses was altered.
    """
    spec = _spec(config, facts, identity, tokenizer)
    limit = longest(config.max_length, facts.context_length)
    recipe = _recipe(config, spec, limit)
    recipe_id = json_id({"source_id": identity.source_id, "recipe": recipe})
    responses = _load(location, recipe_id, spec)
    prompt_keys = keys_of(prompts.samples)
    copies = config.generation_samples
    draws = Keys.of(draw_key(key, number) for key in prompt_keys for number in range(copies))
    return Writing(
        prompts=prompts,
        prompt_keys=prompt_keys,
        copies=copies,
        draws=draws,
        responses=responses,
        places=responses.find(draws),
        recipe=recipe,
        recipe_id=recipe_id,
        spec=spec,
        limit=limit,
    )


def _load(location: Location, recipe_id: str, spec: WritingSpec) -> Responses:
    return load_responses(
        location, recipe_id, vocab_size=spec.vocab_size, max_new_tokens=spec.max_new_tokens
    )


def _spec(
    config: PrecomputeConfig, facts: TeacherFacts, identity: Identity, tokenizer: Any
) -> WritingSpec:
    """Text ends where the model says, and where the tokenizer says that text ends."""
    vocab_size = identity.source["vocab_size"]
    own = {*facts.end_tokens, tokenizer.eos_token_id} - {None}
    return WritingSpec(
        greedy=config.generate == "greedy",
        max_new_tokens=config.max_new_tokens,
        temperature=config.generation_temperature,
        top_k=config.generation_top_k,
        top_p=config.generation_top_p,
        seed=config.generation_seed,
        end_tokens=tuple(sorted(token for token in own if 0 <= token < vocab_size)),
        vocab_size=vocab_size,
    )


def _recipe(config: PrecomputeConfig, spec: WritingSpec, limit: int) -> dict[str, Any]:
    sampling = {
        "temperature": spec.temperature,
        "top_k": spec.top_k,
        "top_p": spec.top_p,
        "seed": spec.seed,
    }
    return {
        "generate": config.generate,
        "max_new_tokens": spec.max_new_tokens,
        "end_tokens": list(spec.end_tokens),
        **({} if spec.greedy else sampling),
        # Only then is a response shorter where its prompt is long.
        **({"max_length": limit} if config.on_long == "truncate" else {}),
    }


def answered(writing: Writing) -> Prepared:
    """The prompts with their responses, a sample each."""
    samples = SpooledSamples()
    for sample in _answered(writing):
        samples.append(sample)
    return replace(writing.prompts, samples=samples)


def _answered(writing: Writing) -> Iterator[Sample]:
    budgets = writing.budgets(np.arange(len(writing.draws)))
    for p, prompt in enumerate(writing.prompts.samples):
        for number in range(writing.copies):
            at = p * writing.copies + number
            place = int(writing.places[at])
            stand_in = np.full(budgets[at], number % writing.spec.vocab_size, np.int32)
            yield _joined(prompt, writing.responses[place] if place >= 0 else stand_in)


def _joined(prompt: Sample, response: Int32) -> Sample:
    roles = np.full(len(response), Role.ASSISTANT, np.uint8)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, response]),
        roles=np.concatenate([prompt.roles, roles]),
        prompt_length=len(prompt.input_ids),
    )
