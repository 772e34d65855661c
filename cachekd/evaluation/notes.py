"""What a reader of an evaluation should know of how it was set, in sentences.

In: what is evaluated, and the settings. Out: sentences, none where nothing is unusual.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachekd.config import EvaluateConfig
from cachekd.evaluation.ready import Candidate, Ready
from cachekd.store.identity import said_of_import


def notes_of(made: Ready, config: EvaluateConfig) -> list[str]:
    """Sentences for the report."""
    return [*_template(made.candidates, config), *_divergences(config), *_imported(made)]


def _template(candidates: Sequence[Candidate], config: EvaluateConfig) -> list[str]:
    """That a preset words prompts otherwise than a chat model expects, where nobody asked it to."""
    chosen = config.protocol.prompt_template
    names = [one.found.name for one in candidates if one.tokenizer.chat_template]
    if config.prompt_template is not None or chosen in ("auto", "chat") or not names:
        return []
    have = "has a chat template" if len(names) == 1 else "have chat templates"
    return [
        f"{', '.join(names)} {have}, which --preset {config.preset} leaves aside: prompts are "
        f"worded by the template {chosen}. --prompt-template chat uses the model's own."
    ]


def _divergences(config: EvaluateConfig) -> list[str]:
    """What a cache alone cannot tell."""
    if config.cache is None or config.teacher is not None:
        return []
    return [
        "A cache holds the head of each distribution alone: for reverse KL, TVD and ExAccErr give "
        "the teacher with --teacher."
    ]


def _imported(made: Ready) -> list[str]:
    """Whose distributions an imported cache holds, nothing of it proves."""
    said = None if made.cache is None else said_of_import(made.cache.identity)
    return [] if said is None else [f"The cache: {said}"]
