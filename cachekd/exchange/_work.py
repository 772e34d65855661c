"""Documents of an import on their way to the store, and what is left out of them.

Comes in: documents as a format has them. Goes out: commits of some hundred thousand tokens, and
counts by reason. A document or row that cannot be used is an error that names it, or is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cachekd.config import ImportConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import DataError
from cachekd.exchange import Broken, Document, Found
from cachekd.exchange._rows import Checked, Law, check, problem_of
from cachekd.exchange._store import Item, Store
from cachekd.types import Role, Sample

_MOST_ENTRIES = 1 << 23  # held at once
_MISSING = "trained rows without targets"
_PARTLY = "rows without targets, which all of the first documents have"
_OTHER_ROWS = "it trains on rows that the targets of the same token ids, which came before it, lack"
Show = Callable[[int, int | None], None]


class Work:
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
        self._told: Counter[str] = Counter()
        self._partly = False
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
        self._partly = rows == "response"
        for found in documents:
            item = self.item(found, rows)
            done += 1
            if item is not None:
                items.append(item)
                tokens, entries = tokens + item.logits.rows + 1, entries + len(item.logits.ids)
            if tokens >= self._config.unit_tokens or entries >= _MOST_ENTRIES:
                self._commit(store, items)
                items, tokens, entries = [], 0, 0
                if progress is not None:
                    progress(done, total)
        if items or self.left_out - self._told:
            self._commit(store, items)
        store.flush()
        if progress is not None:
            progress(done, total)
        self._counts["documents_read"] = done

    def _commit(self, store: Store, items: list[Item]) -> None:
        self._checked = {}
        lacking = store.lacking(items) if self._partly else {}
        for i, count in lacking.items():
            sample = items[i].sample
            self._refuse(f"{sample.source} row {sample.row}: {_OTHER_ROWS} ({count} rows)")
            self.left_out[_OTHER_ROWS] += 1
        kept = [item for i, item in enumerate(items) if i not in lacking]
        samples, keys = store.add(kept, self.left_out - self._told)
        self._told = self.left_out.copy()
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
        reason = _PARTLY if rows == "all" else _MISSING
        return {**bad, **({reason: missing} if missing else {})}

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
    "mass that is not 1": "; values that only looked normalised in the first rows are read with "
    "--values logprobs",
    "that is not told": "; a bound is taken with --next-logprob bound",
    _PARTLY: "; targets of trained rows alone are read with --rows response",
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
