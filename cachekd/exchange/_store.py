"""Imported documents to the store: samples, a plan, its units; as a capture writes them.

Comes in: samples with their targets, some hundred thousand tokens at a time. Goes out: shards, and
plans that name some of them. An import that was stopped goes on: samples and keys that the cache
holds are not written again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cachekd.capture.trial import prior_budget
from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import Prior
from cachekd.config import ImportConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.digests import sample_digest, sample_key
from cachekd.data.packed import Keys, Places
from cachekd.exchange import Mask
from cachekd.exchange._committed import CommittedRows
from cachekd.exchange._gathered import Commit, Gathered, WrittenUnit
from cachekd.exchange._seen import Seen
from cachekd.plugins import find
from cachekd.store.identity import Identity, refuse_difference
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import shard_name
from cachekd.store.plan import cut, run_digest
from cachekd.store.priors import Priors, best_prior, write_prior
from cachekd.store.seal import load_samples
from cachekd.store.shards import write_shard
from cachekd.store.state import read_state
from cachekd.types import Int64, Sample, TopKLogits

_CUTTING = {"batch_tokens": 1 << 14, "sort_window": 1 << 12}
_ENTRY_BYTES, _SCALARS_BYTES = 7, 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A sample, its targets, and the rows of it that could not be used."""

    sample: Sample
    logits: TopKLogits
    bad_rows: tuple[int, ...] = ()


class Store:
    """A cache that imported documents are added to.

    Args:
        config: where it is and how it is encoded.
        identity: whose targets they are.
        learned_from: targets that a prior is learned of, where the cache has none.
        tokens: about how many tokens there will be.

    Raises:
        MismatchError: the cache there is of another identity; names each field.
        StoreError: nothing can be written there.
    """

    def __init__(
        self,
        config: ImportConfig,
        identity: Identity,
        learned_from: Sequence[TopKLogits],
        tokens: int,
    ) -> None:
        self._config, self._identity = config, identity
        self.location = Location(config.cache)
        self.location.check_writable()
        if not has_cache(self.location):
            write_identity(self.location, identity)
        refuse_other(self.location, identity)  # another process may be first
        state = read_state(self.location, skip_broken_units=True)
        sequence = 1 + max((plan.sequence for plan in state.plans.values()), default=0)
        self._gathered = Gathered(self.location, identity, config.format, sequence)
        self._settings = {**_CUTTING, "unit_tokens": config.unit_tokens}
        self._ids_met: list[Keys] = []
        self._runs = {plan.run for plan in state.plans.values()}
        self._done = Seen(state.done_keys())
        names = state.samples()
        self._held = Seen(load_samples(self.location, names, state.written()).ids if names else ())
        self._met = Seen()
        self._rows = CommittedRows(self.location)
        self._prior, self._header = self._encoding(state.priors(), learned_from, tokens)

    def _encoding(
        self, priors: Sequence[str], learned_from: Sequence[TopKLogits], tokens: int
    ) -> tuple[Prior | None, CodecHeader]:
        """How shards are packed: with the first prior of the cache, or one that is learned."""
        capture = self._identity.capture
        header = CodecHeader(
            codec=self._config.codec,
            vocab_size=self._identity.source["vocab_size"],
            values=capture["logprobs"]["values"],
            temperatures=tuple(t for t in capture["temperatures"] if t != 1.0),
        )
        if not find("codecs", header.codec).uses_prior:
            return None, header
        if priors:
            return Priors(self.location).get(priors[0]), replace(header, prior=priors[0])
        budget, wanted = prior_budget(tokens)
        rows = np.cumsum([logits.rows for logits in learned_from])
        enough = 1 + int(np.searchsorted(rows, wanted))
        prior = best_prior(learned_from[:enough], header, tokens, budget)
        return prior, replace(header, prior=write_prior(self.location, prior))

    def lacking(self, items: Sequence[Item]) -> dict[int, int]:
        """Items that train on rows which the record of their token ids lacks, and how many rows.

        Equal token ids have one record: the one that is committed, else of these the fullest.

        Args:
            items: in the order of the source.
        """
        keys = Keys.of(sample_key(item.sample.input_ids) for item in items)
        done = self._done.counts(keys) > 0
        best = _fullest(items, keys, np.flatnonzero(~done))
        # A sample that is held trains on what its record has.
        open_ = np.flatnonzero(self._held.counts(_firsts(items, keys)) == 0)
        found = {}
        for i in open_.tolist():
            own = best.get(keys[i])
            if own == i:
                continue
            if own is None:
                self.flush()  # what waits is not committed
            held_N = self._rows.of(keys[i]) if own is None else _has(items[own])
            sample = items[i].sample
            wanted_N = trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
            if count := int((wanted_N & ~held_N).sum()):
                found[i] = count
        return found

    def add(self, items: Sequence[Item], skipped: Mapping[str, int]) -> tuple[int, int]:
        """Commit documents; how many samples and how many keys of them are new.

        Args:
            items: in the order of the source.
            skipped: documents left out beside them, by reason.
        """
        keys = Keys.of(sample_key(item.sample.input_ids) for item in items)
        ids = self._ids(items, keys)
        fresh = np.flatnonzero(self._held.counts(ids) == 0).tolist()
        best = _fullest(items, keys, np.flatnonzero(self._done.counts(keys) == 0))
        if not items:
            self._write_end(skipped)
            return 0, 0
        commit = Commit(
            samples=[(items[i].sample, keys[i], ids[i]) for i in fresh],
            units=self._write_units([items[i] for i in best.values()], list(best)),
            # An earlier run that wrote all of these samples told of what was beside them.
            skipped=skipped if fresh else {},
        )
        self._ids_met.append(ids)
        if self._gathered.take(commit, sum(len(item.sample.input_ids) for item in items)):
            self.flush()
        self._held.add(ids.take(fresh))
        self._done.add(Keys.of(best))
        return len(fresh), len(best)

    def flush(self) -> None:
        """Write a plan of what waits for one (see `cachekd.exchange._gathered`)."""
        ids, self._ids_met = Keys.joined(self._ids_met), []
        self._gathered.write(run_digest(ids, self._identity.capture_id, self._settings))

    def _write_end(self, skipped: Mapping[str, int]) -> None:
        """What is left out at the end of a source, beside no document: a plan of its own, once."""
        self.flush()
        settings = {**self._settings, "skipped": dict(skipped)}
        run = run_digest(Keys.of(()), self._identity.capture_id, settings)
        if run not in self._runs:
            self._gathered.take(Commit(samples=(), units=(), skipped=skipped), 0)
            self._gathered.write(run)

    def _ids(self, items: Sequence[Item], keys: Keys) -> Keys:
        """Content ids of samples; equal ones are numbered as they come."""
        firsts = _firsts(items, keys)
        copies = self._met.counts(firsts) + Places(firsts).copies()
        self._met.add(firsts)
        again = np.flatnonzero(copies)
        ids = Keys(firsts.array.copy())
        for i in again.tolist():
            ids.array[i] = _id(items[i].sample, keys[i], int(copies[i]))
        return ids

    def _write_units(self, items: Sequence[Item], keys: Sequence[bytes]) -> list[WrittenUnit]:
        """Write the shards of new keys, unit after unit; what commits them comes later."""
        lengths = [len(item.sample.input_ids) for item in items]
        widest = max((len(item.logits.ids) // item.logits.rows for item in items), default=1)
        width = _SCALARS_BYTES + _ENTRY_BYTES * (1 + widest)
        order, units = cut(lengths, bytes_per_token=width, **self._settings)
        written = []
        for unit in units:
            started, first = time.monotonic(), unit[0].first
            places = [int(i) for i in order[first : unit[-1].first + unit[-1].rows]]
            own, own_keys = [items[i] for i in places], tuple(keys[i] for i in places)
            data, facts = write_shard(
                self._header,
                self._identity.capture_id,
                own_keys,
                [item.sample.input_ids for item in own],
                [item.logits for item in own],
                self._prior,
            )
            self.location.keep(shard_name(facts.digest), data, facts.digest)
            pairs = zip(own_keys, own, strict=True)
            written.append(
                WrittenUnit(
                    unit=tuple(replace(batch, first=batch.first - first) for batch in unit),
                    keys=own_keys,
                    shard=facts,
                    skipped={key: item.bad_rows for key, item in pairs if item.bad_rows},
                    seconds=time.monotonic() - started,
                )
            )
        return written


def refuse_other(location: Location, identity: Identity) -> None:
    """Refuse a cache of another identity.

    Raises:
        MismatchError: names each field that differs.
    """
    refuse_difference(
        "import",
        read_identity(location).facts(),
        identity.facts(),
        f"the cache {location.url}",
        "this import",
    )


def _firsts(items: Sequence[Item], keys: Keys) -> Keys:
    """Content ids of samples as if none were equal."""
    return Keys.of(_id(item.sample, key, 0) for item, key in zip(items, keys, strict=True))


def _id(sample: Sample, key: bytes, copy: int) -> bytes:
    parts = (key, sample.roles, sample.prompt_length, sample.domain, sample.weight)
    return sample_digest(*parts, copy=copy)


def _fullest(items: Sequence[Item], keys: Keys, new: Int64) -> dict[bytes, int]:
    """Of each new key the item with the most rows: equal texts may come with other masks."""
    best: dict[bytes, int] = {}
    for i in new.tolist():
        held = best.setdefault(keys[i], i)
        if _rows(items[i]) > _rows(items[held]):
            best[keys[i]] = i
    return best


def _has(item: Item) -> Mask:
    """Rows with targets, or left out as bad ones, bool [L-1]."""
    held_N = np.diff(item.logits.offsets) > 0
    held_N[list(item.bad_rows)] = True
    return held_N


def _rows(item: Item) -> int:
    return int(np.count_nonzero(np.diff(item.logits.offsets)))
