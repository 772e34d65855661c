"""Import: targets of another tool's format into an ordinary sealed cache.

Comes in: an `ImportConfig`. Goes out: the cache, and a report. The first documents are looked at
before anything is written: they say what the values are, whether rows stand where the format says,
and how targets are packed. Then documents are checked, aligned and committed as they are read, some
hundred thousand tokens at a time; only the seal at the end makes them a cache that is read.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from cachekd.config import ImportConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.models import resolve_model
from cachekd.errors import DataError
from cachekd.exchange import Broken, Document, Format, Found
from cachekd.exchange._identity import asserted_identity
from cachekd.exchange._look import expected_of, law_of, looked
from cachekd.exchange._rows import Checked, Law, check, problem_of
from cachekd.exchange._shift import refuse_other_shift
from cachekd.exchange._store import Item, Store
from cachekd.plugins import find
from cachekd.store.claims import unrepaired
from cachekd.store.seal import seal
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.types import Role, Sample

_MOST_ENTRIES = 1 << 23  # held at once
_MISSING = "trained rows without targets"
_log = logging.getLogger(__name__)
Show = Callable[[int, int | None], None]


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
    first = looked(reading)
    documents = [found for found in first if isinstance(found, Document)]
    sound = [one for one in documents if problem_of(one, tokenizer.vocab_size) is None]
    law = law_of(config, reading, sound, tokenizer.vocab_size)
    shifts = refuse_other_shift(sound, config.shift, tokenizer.vocab_size, law.values)
    checked = {document: check(document, law) for document in sound}
    work = _Work(config, law, checked)
    _refuse_first(work, first)
    rows = "all" if all(map(_is_whole, checked.values())) else "response"
    identity = asserted_identity(config, tokenizer, reading, law.values, rows)
    learned_from = [one.logits for one in checked.values()]
    store = Store(config, identity, learned_from, expected_of(config, reading, first, documents))
    with unrepaired(store.location):
        work.run(store, chain(first, reading.documents), rows, reading.total, progress)
        sealed = seal(store.location)
    _tell(plugin, config, identity.capture["imported"], law)
    return {
        "cache": store.location.url,
        "format": config.format,
        "asserted": dict(identity.source["asserted"]),
        "imported": dict(identity.capture["imported"]),
        "values": law.values,
        **({"text_logprob_by_shift": shifts} if shifts else {}),
        **work.report(),
        "source_id": identity.source_id,
        "capture_id": identity.capture_id,
        "generation": sealed.generation,
        "root": sealed.root,
        **sealed.totals,
        "seconds": time.monotonic() - started,
    }


def _is_whole(checked: Checked) -> bool:
    """Whether all rows of a document are there, good or bad."""
    empty = np.diff(checked.logits.offsets) == 0
    empty[[row for rows in checked.bad.values() for row in rows]] = False
    return not empty.any()


def _refuse_first(work: _Work, first: list[Found]) -> None:
    """Where nothing of the first documents can be used, or nothing may be bad, say so at once."""
    usable = [found for found in first if work.item(found, "response") is not None]
    reasons = dict(work.left_out)
    work.clear()
    if not first:
        raise DataError("import: expected documents; the source is empty")
    if not usable:
        raise DataError(f"import: none of the first {len(first)} documents can be used: {reasons}")


class _Work:
    """Documents on their way to the store, and what was left out of them.

    Args:
        config: what becomes of bad rows.
        law: what documents are checked by.
        checked: the first documents, which were checked already; let go at the first commit.
    """

    def __init__(self, config: ImportConfig, law: Law, checked: Mapping[Document, Checked]) -> None:
        self._config = config
        self.law = law
        self._checked = checked
        self.clear()

    def clear(self) -> None:
        """Count from the beginning."""
        self.left_out: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def run(
        self,
        store: Store,
        documents: Iterator[Found],
        rows: str,
        total: int | None,
        progress: Show | None,
    ) -> None:
        """Commit all documents."""
        items: list[Item] = []
        tokens = entries = done = 0
        told: Counter[str] = Counter()
        for found in documents:
            item = self.item(found, rows)
            done += 1
            if item is not None:
                items.append(item)
                tokens, entries = tokens + item.logits.rows + 1, entries + len(item.logits.ids)
            if tokens >= self._config.unit_tokens or entries >= _MOST_ENTRIES:
                self._commit(store, items, self.left_out - told)
                told, items, tokens, entries = self.left_out.copy(), [], 0, 0
                if progress is not None:
                    progress(done, total)
        if items or self.left_out - told:
            self._commit(store, items, self.left_out - told)
        if progress is not None:
            progress(done, total)
        self._counts["documents_read"] = done

    def _commit(self, store: Store, items: list[Item], left_out: Counter[str]) -> None:
        self._checked = {}
        samples, keys = store.add(items, left_out)
        self._counts["new_samples"] += samples
        self._counts["new_documents"] += keys

    def item(self, found: Found, rows: str) -> Item | None:
        """A document with its targets, or None: it is left out, and counted.

        Raises:
            DataError: it cannot be used, and nothing may be left out.
        """
        where = f"{found.source} row {found.row}"
        problem = found.reason if isinstance(found, Broken) else None
        if isinstance(found, Document):
            problem = problem_of(found, self.law.vocab_size)
        if problem is not None or isinstance(found, Broken):
            self._refuse(f"{where}: {problem}")
            self.left_out[_kind(problem or "")] += 1
            return None
        checked = self._checked.get(found) or check(found, self.law)
        sample = _sample(found)
        bad = self._bad_rows(checked, sample, rows)
        for reason, own in bad.items():
            self._refuse(f"{where}: {reason} (at {_positions(own)})")
            self._rows[reason] += len(own)
        if not len(checked.logits.ids):
            self._refuse(f"{where}: no row of it has a target")
            self.left_out["no row has a target"] += 1
            return None
        self._counts["rows_rescaled"] += checked.rescaled
        self._counts["entries_without_mass"] += checked.empty
        self._counts["rows_past_the_end"] += checked.cut
        places = tuple(sorted({row for own in bad.values() for row in own}))
        return Item(sample=sample, logits=checked.logits, bad_rows=places)

    def _bad_rows(self, checked: Checked, sample: Sample, rows: str) -> dict[str, list[int]]:
        """Rows without targets that should have some, by reason."""
        empty_N = np.diff(checked.logits.offsets) == 0
        if rows == "response":
            empty_N &= trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
        bad = dict(checked.bad)
        empty_N[[row for own in bad.values() for row in own]] = False
        missing = np.flatnonzero(empty_N).tolist()
        return {**bad, **({_MISSING: missing} if missing else {})}

    def _refuse(self, text: str) -> None:
        if self._config.on_bad == "fail":
            raise DataError(
                f"{text}. Nothing of it was stored; mend the file, or leave such rows out with "
                "--on-bad skip" + "".join(hint for sign, hint in _HINTS.items() if sign in text)
            )

    def report(self) -> dict[str, Any]:
        """Counts for the report."""
        return {
            **{name: count for name, count in self._counts.items() if count},
            "documents_left_out": dict(self.left_out),
            "rows_left_out": dict(self._rows),
        }


_HINTS = {
    "mass above 1": "; approximated values are brought to mass 1 with --rescale",
    "above 0": "; logits are read with --values logits",
}


def _kind(problem: str) -> str:
    """A reason without the numbers of one document."""
    return "".join(sign for sign in problem.partition(";")[0] if not sign.isdigit()).strip()


def _positions(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"position {shown}" + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def _sample(document: Document) -> Sample:
    roles = document.roles
    if roles is None:
        roles = np.full(len(document.input_ids), Role.TEXT, np.uint8)
    return Sample(
        input_ids=document.input_ids.astype(np.int32),
        roles=roles,
        prompt_length=document.prompt_length,
        domain=document.domain,
        weight=document.weight,
        source=document.source,
        row=document.row,
    )


def _tell(plugin: Format, config: ImportConfig, known: dict[str, Any], law: Law) -> None:
    """Warn once of what the format does not hold, and what stands for it."""
    _log.warning(
        "%s: its teacher, %s, is asserted and not known. %s holds no %s; tail: %s, log-probability "
        "of the next token: %s, entropy: %s",
        config.cache,
        config.teacher,
        config.format,
        ", ".join(plugin.lacks),
        known["tail"],
        known["next_logprob"],
        known["entropy"],
    )


__all__ = ["Show", "import_cache"]
