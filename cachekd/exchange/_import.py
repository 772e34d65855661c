"""Import: targets of another tool's format into an ordinary sealed cache.

Comes in: an `ImportConfig`. Goes out: the cache, and a report. The first documents are looked at
before anything is written: they say what the values are, whether rows stand where the format says,
and how targets are packed. Then documents are checked, aligned and committed as they are read, some
hundred thousand tokens at a time; only the seal at the end makes them a cache that is read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from cachekd.config import ImportConfig
from cachekd.data.models import resolve_model
from cachekd.errors import DataError
from cachekd.exchange import Document, Format, Found, Reading
from cachekd.exchange._identity import asserted_identity
from cachekd.exchange._look import expected_of, law_of, looked, rows_of_first, with_next
from cachekd.exchange._rows import Checked, Law, check, problem_of
from cachekd.exchange._shift import refuse_other_shift
from cachekd.exchange._store import Store
from cachekd.exchange._work import Show, Work
from cachekd.plugins import find
from cachekd.store.claims import unrepaired
from cachekd.store.identity import Identity
from cachekd.store.seal import seal
from cachekd.store.tokenizer import tokenizer_facts

_log = logging.getLogger(__name__)


def import_cache(config: ImportConfig, *, progress: Show | None = None) -> dict[str, Any]:
    """Make a sealed cache of targets in another format; continue what was begun.

    Args:
        config: see `ImportConfig`.
        progress: called with documents done, and how many there are if that is known.

    Returns:
        a report of plain JSON types: counts, what was left out by reason, ids, root of the seal.

    Raises:
        DataError: the source is of another format, or a row of it cannot be used; names it.
        MismatchError: rows do not stand where they should, or the cache there is another's.
        StoreError: the cache cannot be written; what was committed before stays whole.
    """
    started = time.monotonic()
    plugin: Format = find("exchange", config.format)
    tokenizer = tokenizer_facts(resolve_model(config.tokenizer, weights=False))
    reading = plugin.read(config, tokenizer.vocab_size)
    start = _start(config, reading, tokenizer.vocab_size)
    work = Work(config, start.law, start.checked)
    _refuse_first(work, start.first)
    identity = asserted_identity(config, tokenizer, reading, start.law, start.rows)
    learned_from = [one.logits for one in start.checked.values()]
    store = Store(config, identity, learned_from, start.tokens)
    with unrepaired(store.location):
        work.run(store, chain(start.first, reading.documents), start.rows, reading.total, progress)
        sealed = seal(store.location)
    _tell(plugin, config, store.location.url, identity)
    return {
        **_facts(config, store.location.url, identity),
        "values": start.law.values,
        **({"text_logprob_by_shift": start.shifts} if start.shifts else {}),
        **work.report(),
        "generation": sealed.generation,
        "root": sealed.root,
        **sealed.totals,
        "seconds": time.monotonic() - started,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What the first documents tell of all.

    Attributes:
        first: these documents, which are taken off the source.
        checked: targets of those that can be used.
        law: what all documents are checked by.
        rows: all or response.
        shifts: mean log-probability of the text's tokens by shift.
        tokens: about how many the source has.
    """

    first: list[Found]
    checked: Mapping[Document, Checked]
    law: Law
    rows: str
    shifts: Mapping[str, float]
    tokens: int


def _start(config: ImportConfig, reading: Reading, vocab_size: int) -> _Start:
    """Look at the first documents (errors of `import_cache`)."""
    first = looked(reading)
    documents = [found for found in first if isinstance(found, Document)]
    sound = [one for one in documents if problem_of(one, vocab_size) is None]
    law = law_of(config, reading, sound, vocab_size)
    shifts = refuse_other_shift(sound, config.shift, vocab_size, law.values)
    checked = {document: check(document, law) for document in sound}
    targets = list(checked.values())
    return _Start(
        first=first,
        checked=checked,
        law=with_next(law, config, reading, targets),
        rows=rows_of_first(config, targets),
        shifts=shifts,
        tokens=expected_of(config, reading, first, documents),
    )


def _facts(config: ImportConfig, cache: str, identity: Identity) -> dict[str, Any]:
    """Whose targets these are, for the report."""
    return {
        "cache": cache,
        "format": config.format,
        "asserted": dict(identity.source["asserted"]),
        "imported": dict(identity.capture["imported"]),
        "source_id": identity.source_id,
        "capture_id": identity.capture_id,
    }


def _refuse_first(work: Work, first: list[Found]) -> None:
    """Where nothing of the first documents can be used, or nothing may be bad, say so at once."""
    usable = [found for found in first if work.item(found, "response") is not None]
    reasons = dict(work.left_out)
    work.clear()
    if not first:
        raise DataError("import: expected documents; the source is empty")
    if not usable:
        raise DataError(f"import: none of the first {len(first)} documents can be used: {reasons}")


def _tell(plugin: Format, config: ImportConfig, cache: str, identity: Identity) -> None:
    """Warn once of what the format does not hold, and what stands for it."""
    known = identity.capture["imported"]
    _log.warning(
        "%s: its teacher, %s, is asserted and not known. %s holds no %s; tail: %s, log-probability "
        "of the next token: %s, entropy: %s",
        cache,
        identity.source["asserted"]["teacher"],
        config.format,
        ", ".join(plugin.lacks),
        known["tail"],
        known["next_logprob"],
        known["entropy"],
    )


__all__ = ["Show", "import_cache"]
