"""What must hold before a student is loaded, checked from small files: no torch, no weights.

In: opened caches, the student's folder, what the objective needs. Out: nothing, the length that
samples are cut to, or which layers learn from which; a wrong pair raises, with both sides named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.data.alignment import LossMask
from cachekd.data.attention import AttentionSpec, attention_shape
from cachekd.data.models import context_length, model_config, weight_files
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.losses.attention import AttentionMapping, map_attention
from cachekd.store.identity import refuse_difference, tokenizer_facts

if TYPE_CHECKING:
    from cachekd.objectives import Needs
    from cachekd.store.reader import Cache

_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)


def parse_cache(text: str) -> tuple[str | None, str]:
    """Name and location of ``NAME=PATH`` or ``PATH``."""
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)


def check_names(caches: Sequence[Cache]) -> None:
    """Refuse two caches of one name.

    Raises:
        ConfigError: names the name.
    """
    names = [cache.name for cache in caches]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"cache: {names.count(name)} caches are called {name!r}; "
                "give each a name of its own, as NAME=PATH"
            )


def check_one_tokenizer(caches: Sequence[Cache]) -> None:
    """Refuse caches of different tokenizers: their token ids do not mean the same.

    Raises:
        MismatchError: names both caches and both tokenizers.
    """
    first = caches[0]
    for other in caches[1:]:
        if _tokenizer(other) != _tokenizer(first):
            raise MismatchError(
                f"caches {first.name!r} and {other.name!r} have different tokenizers: "
                f"{_show(*_tokenizer(first))} and {_show(*_tokenizer(other))}. "
                "Train on caches of one tokenizer"
            )


def check_student(folder: Path, caches: Sequence[Cache]) -> None:
    """Refuse a student that is not there, or whose tokens are not those of the caches.

    Raises:
        TeacherError: the folder lacks configuration, tokenizer or weights.
        MismatchError: another tokenizer, or an embedding smaller than the vocabulary.
    """
    config = model_config(folder)
    weight_files(folder)
    facts = tokenizer_facts(folder)
    for cache in caches:
        digest, size = _tokenizer(cache)
        if (facts.digest, facts.vocab_size) != (digest, size):
            raise MismatchError(
                f"train: the student {folder} has tokenizer "
                f"{_show(facts.digest, facts.vocab_size)}, cache {cache.name!r} has "
                f"{_show(digest, size)}. Use a student with the teacher's tokenizer, or capture "
                "again with a teacher of the student's"
            )
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    embedding = config.get("vocab_size", inner.get("vocab_size"))
    if isinstance(embedding, int) and embedding < facts.vocab_size:
        raise MismatchError(
            f"train: the student {folder} has an embedding of {embedding} tokens, its tokenizer "
            f"{facts.vocab_size}. Resize the embedding of the student"
        )


def check_needs(needs: Needs, caches: Sequence[Cache]) -> None:
    """Refuse caches that lack what the objective takes.

    Raises:
        ConfigError: names the cache, what is missing, and the flag that would have captured it.
        MismatchError: the caches are of several teachers, and the objective wants one.
    """
    if needs.one_teacher:
        for other in caches[1:]:
            refuse_difference(
                "train",
                caches[0].identity.source,
                other.identity.source,
                f"cache {caches[0].name!r}",
                f"cache {other.name!r}",
            )
    _check_selection(needs, caches)
    for kind in needs.kinds:
        if kind != "logits":
            raise ConfigError(f"the objective needs targets of kind {kind!r}; caches hold logits")
    for cache in caches:
        captured = {1.0, *map(float, cache.identity.capture["temperatures"])}
        missing = sorted(set(needs.temperatures) - captured)
        if missing:
            wanted = " ".join(f"{value:g}" for value in missing)
            held = ", ".join(f"{value:g}" for value in sorted(captured))
            raise ConfigError(
                f"cache {cache.name!r} lacks temperature {wanted}: it was captured with {held}. "
                f"Train at one of these, or capture again with --temperatures {wanted}"
            )


def _check_selection(needs: Needs, caches: Sequence[Cache]) -> None:
    """Sampled entries only for what is linear in p, and not mixed with exact heads; a unigram."""
    sampled = [c for c in caches if "sampled" in c.identity.capture["selection"]["kind"]]
    if sampled and not needs.sampled:
        raise ConfigError(
            f"cache {sampled[0].name!r} holds sampled entries, which serve forward KL at "
            "temperature 1 (with --tail bucket) and cross entropy: nothing else has an unbiased "
            "estimate from them. Train so, or capture again with --logits-selection top_p"
        )
    if 0 < len(sampled) < len(caches):
        raise ConfigError(
            f"cache {sampled[0].name!r} holds sampled entries, others do not; their losses are "
            "not estimated alike. Train on captures of one selection"
        )
    cut = [c for c in caches if c.identity.capture["selection"]["kind"] != "full"]
    if needs.full and cut:
        raise ConfigError(
            f"the objective reads the teacher's whole distribution; cache {cut[0].name!r} holds "
            f"{cut[0].identity.capture['selection']['kind']}. Capture again with "
            "--logits-selection full"
        )
    if needs.unigram and all(cache.unigram() is None for cache in caches):
        raise ConfigError(
            f"the objective needs the teacher's unigram, which cache {caches[0].name!r} does not "
            "hold: it was captured with a codec that learns none. Give it one with "
            f"cachekd merge {caches[0].url} --recode --out NEW"
        )


def check_attention(
    needs: Needs,
    caches: Sequence[Cache],
    folder: Path,
    loss_mask: LossMask = LossMask.AUTO,
) -> AttentionMapping | None:
    """What of the student learns from what of the captured attention; None without such a loss.

    Raises:
        ConfigError: a cache holds no attention; names the flag that would have captured it.
        MismatchError: caches hold attention of different layers or heads, or only of responses
            where all tokens are trained; or the student has no counterparts of them.
    """
    if not needs.attention:
        return None
    specs = [_attention(cache) for cache in caches]
    first = _learned_from(caches[0], specs[0])
    for cache, spec in zip(caches, specs, strict=True):
        refuse_difference(
            "train, attention",
            first,
            _learned_from(cache, spec),
            f"cache {caches[0].name!r}",
            f"cache {cache.name!r}",
        )
        if spec.rows == "response" and loss_mask is LossMask.ALL:
            raise MismatchError(
                f"cache {cache.name!r} holds attention of response rows, but all tokens are to be "
                "trained. Train on completions, or capture again with --attention-rows all"
            )
    try:
        student = attention_shape(model_config(folder))
    except TeacherError as error:
        raise MismatchError(
            f"train: the config.json of the student {folder} does not state its layers and heads, "
            "which the attention loss maps. Train without attention loss"
        ) from error
    return map_attention(student, first["teacher_layers"], specs[0])


def _attention(cache: Cache) -> AttentionSpec:
    if cache.identity.attention is None:
        raise ConfigError(
            f"cache {cache.name!r} holds no attention, which the objective learns from. Capture "
            "again with --attention maps (or --attention qk for long documents), or set the weight "
            "of the attention loss to 0"
        )
    return AttentionSpec.from_json(cache.identity.attention)


def _learned_from(cache: Cache, spec: AttentionSpec) -> Mapping[str, Any]:
    """What must be the same in caches that are trained on together."""
    return {
        "layers": list(spec.layers),
        "heads": list(spec.heads),
        "teacher_heads": spec.teacher_heads,
        "teacher_layers": attention_shape(cache.identity.source["config"]).layers,
    }


def resolve_max_length(asked: int | None, folder: Path) -> int | None:
    """Tokens that samples are cut to: what was asked, else the student's context; None: no limit.

    Raises:
        ConfigError: more was asked than the student's context holds.
    """
    context = context_length(model_config(folder))
    if asked is not None and context is not None and asked > context:
        raise ConfigError(
            f"max_length: expected at most {context}, the context of the student {folder}; "
            f"found {asked}"
        )
    return asked if asked is not None else context


def _tokenizer(cache: Cache) -> tuple[str, int]:
    source = cache.identity.source
    return str(source["tokenizer"]), int(source["vocab_size"])


def _show(digest: str, vocab_size: int) -> str:
    return f"{digest[:16]} ({vocab_size} tokens)"
