"""Who the teacher of a run is: its tokenizer, identity and provenance, against the cache's.

Comes in: settings and the facts of a backend. Goes out: an `Identity`, and warnings or a refusal
where the cache at hand has another. No weight is loaded.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from cachekd import __version__
from cachekd.config import PrecomputeConfig, ScoringConfig
from cachekd.data.digests import json_id
from cachekd.errors import DataError, TeacherError
from cachekd.store.identity import (
    Identity,
    capture_id,
    capture_spec,
    refuse_difference,
    source_facts,
    warn_of_difference,
)
from cachekd.store.io import Location
from cachekd.store.state import CacheState
from cachekd.store.tokenizer import TokenizerFacts
from cachekd.teachers import TeacherFacts


def load_tokenizer(config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts) -> Any:
    """The tokenizer as the student will load it.

    Raises:
        TeacherError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            facts.tokenizer_folder, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(
            f"the tokenizer in {facts.tokenizer_folder} cannot be loaded: {error}"
        ) from error


def clock_of(state: CacheState | None) -> datetime:
    """Now, or the time that the cache's first run saw.

    A template that prints the date must give the same tokens on every day.
    """
    stored = state.identity.provenance.get("clock") if state else None
    return datetime.fromisoformat(stored) if stored else datetime.now().replace(microsecond=0)


def bare_identity(
    config: PrecomputeConfig, facts: TeacherFacts, tokenizer_identity: TokenizerFacts
) -> Identity:
    """Source and capture of a run, known before its tokenizer is loaded; no provenance."""
    source = source_facts(config, facts, tokenizer_identity)
    capture = capture_spec(config, config.attention_kernel, tokenizer_identity.vocab_size)
    if facts.inexact:
        capture["inexact"] = dict(facts.inexact)
    source_id = json_id(source)
    return Identity(
        source_id=source_id,
        source=source,
        capture_id=capture_id(source_id, capture),
        capture=capture,
        provenance={},
    )


def provenance_of(config: PrecomputeConfig, tokenizer: Any, clock: datetime) -> dict[str, Any]:
    """Where a run's teacher comes from, and how text becomes tokens."""
    return {
        "teacher": public_name(config.teacher),
        "revision": config.revision,
        "tokenizer": public_name(config.tokenizer),
        "adapter": public_name(config.adapter),
        "chat_template": _template(config, tokenizer),
        "prompt_template": config.prompt_template,
        "add_eos": config.add_eos,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "clock": clock.isoformat(),
        "cachekd": __version__,
    }


def check_same(stored: Identity, asked: Identity, location: Location) -> None:
    """Refuse another identity than the cache's; warn of another provenance.

    Raises:
        MismatchError: names each field that differs.
    """
    names = (f"the cache {location.url}", "this run")
    refuse_difference("precompute", stored.facts(), asked.facts(), *names)
    warn_of_difference("precompute", stored.provenance, asked.provenance, *names)


def public_name(name: str | None) -> str | None:
    """A hub id as it is; of a local folder only its last part: paths tell about a machine."""
    return os.path.basename(os.path.abspath(name)) if name and os.path.exists(name) else name


def _template(config: PrecomputeConfig, tokenizer: Any) -> str | None:
    if config.chat_template_path is None:
        template = getattr(tokenizer, "chat_template", None)
        return template if isinstance(template, str) else None
    try:
        with open(config.chat_template_path, encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"chat_template_path: {error}") from error
