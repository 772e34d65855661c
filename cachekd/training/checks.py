"""What must hold before a student is loaded, checked from small files: no torch, no weights.

In: opened caches, the student's folder, what the objective needs. Out: nothing, the length that
samples are cut to, or which layers learn from which; a wrong pair raises, with both sides named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cachekd.data.models import context_length, model_config, weight_files, weights_digest
from cachekd.errors import ConfigError, MismatchError
from cachekd.store.identity import refuse_difference
from cachekd.store.tokenizer import tokenizer_facts

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
    for other in caches[1:]:
        first = caches[0]
        if _tokenizer(other) != _tokenizer(first):
            raise MismatchError(
                f"train: caches {first.name!r} and {other.name!r} have different tokenizers: "
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


def check_start(needs: Needs, caches: Sequence[Cache], student: Path) -> None:
    """Refuse a cache whose teacher is not the student as it starts, where the objective wants that.

    Weights must be the same bytes; the dtype that the teacher ran in may be another.

    Raises:
        ConfigError: there is no cache of the name.
        MismatchError: names both weights.
    """
    if needs.start is None:
        return
    cache = next((cache for cache in caches if cache.name == needs.start), None)
    if cache is None:
        raise ConfigError(
            f"the objective needs a cache called {needs.start}, captured with the student as it "
            f"starts; give one as --cache {needs.start}=PATH"
        )
    weights, adapter = cache.identity.source["weights"], cache.identity.source.get("adapter")
    own = weights_digest(student)
    if weights != own or adapter is not None:
        found = f"weights {weights}" + (" with an adapter" if adapter is not None else "")
        raise MismatchError(
            f"train: cache {cache.name!r} must be of the student as it starts. It was captured "
            f"with {found}; the student {student} has weights {own}. Capture it again: cachekd "
            f"precompute --teacher {student} --cache NEW"
        )


def check_mixture(needs: Needs) -> None:
    """Refuse an objective that a mixture of teachers cannot serve.

    Raises:
        ConfigError: says what the mixture does not have.
    """
    further = sorted(set(needs.temperatures) - {1.0})
    if further:
        raise ConfigError(
            f"mixture: the objective trains at temperature {further[0]:g}; the normaliser of a "
            "mixture at another temperature than 1 does not follow from those of its members. "
            "Train at temperature 1"
        )
    if needs.routed or needs.attention:
        what = "routes samples by domain" if needs.routed else "takes attention"
        raise ConfigError(f"mixture: the objective {what}, which a mixture does not have")


def check_needs(needs: Needs, caches: Sequence[Cache], *, mixture: bool = False) -> None:
    """Refuse caches that lack what the objective takes.

    Args:
        needs: of the objective.
        caches: those of training and evaluation.
        mixture: whether their targets are mixed: then their teachers may differ.

    Raises:
        ConfigError: names the cache, what is missing, and the flag that would have captured it.
        MismatchError: the caches are of several teachers, and the objective wants one.
    """
    if mixture:
        check_mixture(needs)
    elif needs.one_teacher:
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


def check_written(needs: Needs, caches: Sequence[Cache]) -> None:
    """Refuse to train on responses of the data where the teacher's are wanted.

    Raises:
        ConfigError: some sample of a cache was not written by its teacher.
    """
    for cache in caches if needs.generated else ():
        written, samples = int(cache.totals.get("generated", 0)), len(cache)
        if written < samples:
            raise ConfigError(
                "the objective needs responses that the teacher wrote; of the "
                f"{samples} samples of cache {cache.name!r} it wrote {written or 'none'}. Capture "
                "a cache of their own with cachekd precompute --generate sample (or greedy)"
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
    for cache in caches:
        _check_heads(needs, cache)
        _check_imported(needs, cache)
    if needs.unigram and caches and all(cache.unigram() is None for cache in caches):
        raise ConfigError(
            f"the objective needs the teacher's unigram, which cache {caches[0].name!r} does not "
            "hold: it was captured with a codec that learns none. Give it one with "
            f"cachekd merge {caches[0].url} --recode --out NEW"
        )


def _check_heads(needs: Needs, cache: Cache) -> None:
    """Heads of the whole vocabulary, or of some mass; a limit by k alone is seen row by row."""
    selection = cache.identity.capture["selection"]
    vocab = _tokenizer(cache)[1]
    whole = selection.get("k", 0) >= vocab and selection.get("p", 1.0) >= 1
    if needs.full and not whole:
        raise ConfigError(
            f"the objective needs the teacher's whole distribution; cache {cache.name!r} was "
            f"captured with {selection}. Capture again with --logits-selection full"
        )
    if selection["kind"] == "top_p" and selection.get("p", 1.0) < needs.mass:
        raise ConfigError(
            f"the objective needs heads that hold {needs.mass:g} of the teacher's mass; cache "
            f"{cache.name!r} was captured with --logits-top-p {selection['p']:g}. Ask for less, "
            f"or capture again with --logits-top-p {needs.mass:g} or more"
        )


def _check_imported(needs: Needs, cache: Cache) -> None:
    """What an import may not know: mass outside the entries, and the next token's probability."""
    known = cache.identity.capture.get("imported", {})
    if str(known.get("tail", "")).startswith("unknown") and not needs.sampled:
        raise ConfigError(
            f"cache {cache.name!r} was imported with values that are normalised over the entries "
            "of a row: the mass outside is not known, and the objective needs it. Train forward "
            "KL (--objective kd with --tail bucket) or cross entropy, or import log-probabilities "
            "over the whole vocabulary"
        )
    if needs.next_known and known.get("next_logprob", "stored") != "stored":
        raise ConfigError(
            f"cache {cache.name!r} was imported: where the next token is no entry of its row, its "
            "log-probability is a bound, and the objective needs its value. Train another one (of "
            "dkd, --target argmax needs none), or capture the teacher with cachekd precompute"
        )


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
