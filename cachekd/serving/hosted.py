"""The teacher of a server: loaded like any other, with what clients are told of it.

Comes in: a `ServeConfig`. Goes out: a `Hosted`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd import __version__
from cachekd.config import ServeConfig
from cachekd.data.digests import json_id
from cachekd.data.lengths import longest
from cachekd.plugins import find
from cachekd.store.identity import source_facts
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import Teacher, TeacherFacts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hosted:
    """A loaded teacher and who it is.

    Attributes:
        teacher: what scores; only one thread may call it.
        name: as it was asked for.
        source: the facts that the source id is a digest of.
        context_length: longest document in tokens.
        attention: the attention implementation that it runs.
    """

    teacher: Teacher
    name: str
    source: Mapping[str, Any]
    context_length: int
    attention: str

    @property
    def source_id(self) -> str:
        """Digest of the source."""
        return json_id(self.source)

    @property
    def vocab_size(self) -> int:
        """Real vocabulary V."""
        return int(self.source["vocab_size"])


def load_hosted(config: ServeConfig) -> Hosted:
    """Find the teacher, say who it is, and load it.

    Raises:
        TeacherError: there is no such model or tokenizer, or it cannot be loaded as configured.
    """
    backend = find("teachers", config.backend)
    facts: TeacherFacts = backend.identify(config)
    source = source_facts(config, facts, tokenizer_facts(facts.tokenizer_folder))
    teacher: Teacher = backend.load(config, facts, config.threads or os.cpu_count() or 1)
    return Hosted(
        teacher=teacher,
        name=config.teacher,
        source=source,
        context_length=longest(config.max_length, facts.context_length),
        attention=config.attention_kernel,
    )


def described(hosted: Hosted, config: ServeConfig) -> dict[str, Any]:
    """What a client is told, as plain JSON types."""
    numerics = {**hosted.teacher.numerics, "attn_implementation": hosted.attention}
    return {
        "source": dict(hosted.source),
        "source_id": hosted.source_id,
        "tokenizer": hosted.source["tokenizer"],
        "vocab_size": hosted.vocab_size,
        "context_length": hosted.context_length,
        "numerics": numerics,
        "cachekd": __version__,
        "limits": {
            "max_body_bytes": config.max_body_bytes,
            "max_answer_bytes": config.max_answer_bytes,
            "batch_tokens": config.batch_tokens,
            "max_queue": config.max_queue,
        },
    }
