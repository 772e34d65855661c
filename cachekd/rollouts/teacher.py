"""The live teacher of a run: found and compared with the student before a weight is loaded.

Comes in: settings of a run and the student's folder. Goes out: a `FoundTeacher`, which says who it
is and what is kept of it, and loads or hands out a `LiveTeacher`, which scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cachekd.config import ScoringConfig, TrainConfig
from cachekd.data.digests import json_id
from cachekd.errors import MismatchError
from cachekd.plugins import find
from cachekd.store.identity import source_facts
from cachekd.store.tokenizer import TokenizerFacts, tokenizer_facts
from cachekd.teachers import RemoteConfig, RemoteTeacher, Selection, Teacher, TeacherFacts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveTeacher:
    """A teacher that answers.

    Attributes:
        teacher: what scores.
        source: who it is, as the facts that a source id is a digest of.
        scores_id: digest of the source and of what is kept: address of its scores.
        selection: what is kept of each row.
        context_length: longest document in tokens.
        model: the model in this process, or None where it is elsewhere.
        facts: what ``scores_id`` is a digest of.
        remote: whether it is reached and not loaded.
    """

    teacher: Teacher
    source: Mapping[str, Any]
    scores_id: str
    selection: Selection
    context_length: int
    model: Any | None
    facts: Mapping[str, Any]
    remote: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundTeacher:
    """A teacher that can be loaded, or was reached.

    Attributes:
        source: who it is, as the facts that a source id is a digest of.
        selection: what is kept of each row.
        attention: the attention implementation that it runs, or None where it does not say.
        context_length: longest document in tokens.
        remote: whether it is in another process.
        ready: gives what scores, for a device and a number of CPU threads.
    """

    source: Mapping[str, Any]
    selection: Selection
    attention: str | None
    context_length: int
    remote: bool
    ready: Callable[[str | None, int], Teacher]

    @property
    def facts(self) -> dict[str, Any]:
        """All that two runs must have in common to share scores."""
        return {
            "source": dict(self.source),
            "attn_implementation": self.attention,
            "top_k": self.selection.k,
            "temperatures": [1.0, *self.selection.temperatures],
        }

    @property
    def scores_id(self) -> str:
        """Digest of the facts: address of the scores."""
        return json_id(self.facts)

    def load(self, device: str | None, threads: int | None) -> LiveTeacher:
        """Load it, unless it is elsewhere.

        Args:
            device: where it runs; None: on a GPU if there is one.
            threads: its CPU threads; None: as many as this process uses.

        Raises:
            TeacherError: it cannot be loaded as configured.
        """
        import torch

        teacher = self.ready(device, threads or torch.get_num_threads())
        return LiveTeacher(
            teacher=teacher,
            source=self.source,
            scores_id=self.scores_id,
            selection=self.selection,
            context_length=self.context_length,
            model=getattr(teacher, "model", None),
            facts=self.facts,
            remote=self.remote,
        )


def find_teacher(
    config: TrainConfig, student: Path, temperatures: tuple[float, ...]
) -> FoundTeacher:
    """The live teacher that a run names, known to have the student's tokenizer.

    Args:
        config: settings with a live teacher.
        student: the student's folder.
        temperatures: temperatures other than 1 whose log-normaliser is kept, ascending.

    Raises:
        MismatchError: another tokenizer than the student's; names both.
        TeacherError: it is not there, or cannot be reached.
    """
    tokenizer = tokenizer_facts(student)
    vocab_size = tokenizer.vocab_size
    selection = Selection(
        k=min(config.logits_top_k or vocab_size, vocab_size),
        p=1.0,
        min_k=1,
        vocab_size=vocab_size,
        temperatures=temperatures,
    )
    if config.teacher_url:
        return _reached(config, config.teacher_url, tokenizer, selection)
    return _in_process(config, student, tokenizer, selection)


def _reached(
    config: TrainConfig, url: str, tokenizer: TokenizerFacts, selection: Selection
) -> FoundTeacher:
    teacher: RemoteTeacher = find("teachers", config.teacher_backend or "served").connect(
        RemoteConfig(
            url=url,
            token=config.teacher_token,
            timeout=config.teacher_timeout,
            patience=config.teacher_patience,
            tokenizer=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
        )
    )
    return FoundTeacher(
        source=teacher.source,
        selection=selection,
        attention=teacher.numerics.get("attn_implementation"),
        context_length=teacher.context_length,
        remote=True,
        ready=lambda device, threads: teacher,
    )


def _in_process(
    config: TrainConfig, student: Path, tokenizer: TokenizerFacts, selection: Selection
) -> FoundTeacher:
    assert config.teacher is not None, "a live teacher was named"
    settings = ScoringConfig(
        teacher=config.teacher,
        backend=config.teacher_backend or "hf",
        revision=config.teacher_revision,
        adapter=config.teacher_adapter,
        dtype=config.teacher_dtype,
        device_map=config.teacher_device_map,
        trust_remote_code=config.trust_remote_code,
    )
    backend = find("teachers", settings.backend)
    facts: TeacherFacts = backend.identify(settings)
    own = tokenizer_facts(facts.tokenizer_folder)
    if own != tokenizer:
        raise MismatchError(
            f"train: the student {student} has tokenizer {tokenizer.digest} with "
            f"{tokenizer.vocab_size} tokens, the live teacher {config.teacher} has {own.digest} "
            f"with {own.vocab_size}. Use a teacher and a student of one tokenizer"
        )

    def ready(device: str | None, threads: int) -> Teacher:
        loaded: Teacher = backend.load(replace(settings, device=device), facts, threads)
        return loaded

    return FoundTeacher(
        source=source_facts(settings, facts, own),
        selection=selection,
        attention=settings.attention_kernel,
        context_length=facts.context_length,
        remote=False,
        ready=ready,
    )
