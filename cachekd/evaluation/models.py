"""The models of an evaluation and its teacher: found, compared, and loaded one after the other.

In: settings. Out: a `Found` for each, with all that can be known from small files, so that a
missing folder, two models of one name or a teacher of another tokenizer are refused before a weight
is loaded; and the model itself when its turn comes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachekd.capture.identify import load_tokenizer, public_name
from cachekd.config import EvaluateConfig, ScoringConfig
from cachekd.data.digests import json_id
from cachekd.data.models import context_length, resolve_model
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.plugins import find
from cachekd.store.identity import source_facts
from cachekd.store.tokenizer import TokenizerFacts, tokenizer_facts
from cachekd.teachers import TeacherFacts
from cachekd.teachers._loading import load_model
from cachekd.teachers._memory import one_memory_error
from cachekd.training.checks import parse_cache as parse_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that can be loaded.

    Attributes:
        name: how the report calls it.
        who: how messages call it.
        path: as it was given.
        settings: how it is loaded.
        facts: its folder, digests, dtype and end tokens.
        tokenizer: digest and real vocabulary of its tokenizer.
        context: longest input in tokens, or None where it does not say.
    """

    name: str
    who: str
    path: str
    settings: ScoringConfig
    facts: TeacherFacts
    tokenizer: TokenizerFacts
    context: int | None

    def plain(self) -> dict[str, Any]:
        """Who it is, as plain JSON types."""
        source = source_facts(self.settings, self.facts, self.tokenizer)
        return {
            "name": self.name,
            "path": self.path,
            "source_id": json_id(source),
            "adapter": None if self.facts.adapter is None else self.facts.adapter["weights"],
            "dtype": self.facts.dtype,
            "tokenizer": self.tokenizer.digest,
            "vocab_size": self.tokenizer.vocab_size,
            "context_length": self.context,
        }


def find_models(config: EvaluateConfig) -> list[Found]:
    """The models, in the order given.

    Raises:
        ConfigError: two of one name.
        TeacherError: one is not there, or lacks configuration, weights or tokenizer.
    """
    pairs = [parse_named(text) for text in config.model]
    names = [name or str(public_name(path)) for name, path in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"model: {names.count(name)} models are called {name!r}; give each a name of its "
                "own, as NAME=PATH"
            )
    return [_model(name, path, config) for name, (_, path) in zip(names, pairs, strict=True)]


def find_teacher(config: EvaluateConfig, models: Sequence[Found]) -> Found | None:
    """The live teacher that is asked for, known to have the models' tokenizer.

    Raises:
        MismatchError: it has another tokenizer than a model; names both.
        TeacherError: it is not there.
    """
    if config.teacher is None:
        return None
    settings = _settings(
        config,
        teacher=config.teacher,
        adapter=config.teacher_adapter,
        dtype=config.teacher_dtype,
        device=config.teacher_device or (None if config.teacher_device_map else config.device),
        device_map=config.teacher_device_map,
    )
    teacher = _found("the teacher", "the teacher", config.teacher, settings)
    check_tokenizer(models, teacher.tokenizer, f"the teacher {config.teacher}")
    return teacher


def check_tokenizer(models: Sequence[Found], expected: TokenizerFacts, whose: str) -> None:
    """Refuse a model whose tokens are not those that a teacher's distributions are about.

    Raises:
        MismatchError: names both sides.
    """
    for model in models:
        if model.tokenizer != expected:
            raise MismatchError(
                f"evaluate: the model {model.name} ({model.path}) has tokenizer "
                f"{model.tokenizer.digest} with {model.tokenizer.vocab_size} tokens, {whose} has "
                f"{expected.digest} with {expected.vocab_size}. Their distributions cannot be "
                "compared: evaluate models of other tokenizers without it"
            )


def load(found: Found) -> Any:
    """The model, where it is to run, in evaluation mode.

    Raises:
        TeacherError: it does not fit, cannot be loaded, or lacks weights.
    """
    try:
        with one_memory_error():
            model, missing = load_model(found.settings, found.facts)
    except MemoryError as error:
        raise TeacherError(
            f"{found.who} ({found.path}) does not fit: out of memory: {error}. Use a smaller "
            "dtype, another device, or a device map"
        ) from error
    except Exception as error:  # file formats and code of models have errors of their own
        raise TeacherError(f"{found.who} ({found.path}) cannot be loaded: {error}") from error
    if missing:
        raise TeacherError(
            f"{found.who} ({found.path}): {len(missing)} weights are not in its checkpoint, such "
            f"as {missing[0]}; they would be random numbers. Complete the folder"
        )
    return model.eval()


def tokenizer_of(found: Found) -> Any:
    """The tokenizer of a model."""
    return load_tokenizer(found.settings, found.facts)


def _model(name: str, path: str, config: EvaluateConfig) -> Found:
    folder = resolve_model(path)
    base, adapter, tokenizer = path, None, None
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base, adapter = _base_of(folder), path
        tokenizer = path if (folder / "tokenizer.json").is_file() else None
    settings = _settings(
        config,
        teacher=base,
        adapter=adapter,
        tokenizer=tokenizer,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
    )
    return _found(name, f"model {name}", path, settings)


def _base_of(folder: Path) -> str:
    path = folder / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise TeacherError(f"{path} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise TeacherError(
            f"{path} names no base model; expected base_model_name_or_path. Add it, or merge the "
            "adapter into its base and evaluate that"
        )
    return base


def _settings(config: EvaluateConfig, **own: Any) -> ScoringConfig:
    return ScoringConfig(
        trust_remote_code=config.trust_remote_code,
        attn_implementation=config.attn_implementation,
        # Only counts for a model that does not say how long its inputs may be.
        max_length=config.max_prompt_length + config.max_new_tokens,
        **own,
    )


def _found(name: str, who: str, path: str, settings: ScoringConfig) -> Found:
    facts: TeacherFacts = find("teachers", "hf").identify(settings)
    return Found(
        name=name,
        who=who,
        path=path,
        settings=settings,
        facts=facts,
        tokenizer=tokenizer_facts(facts.tokenizer_folder),
        context=context_length(facts.config),
    )
