"""Imported documents to the store: samples, a plan, its units; as a capture writes them.

Comes in: samples with their targets, some hundred thousand tokens at a time. Goes out: committed
units of a plan of their own. An import that was stopped goes on: samples and keys that the cache
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
from cachekd.data.digests import bytes_digest, sample_digest, sample_key
from cachekd.data.packed import Keys, Places
from cachekd.exchange import Mask
from cachekd.exchange._committed import CommittedRows
from cachekd.exchange._seen import Seen
from cachekd.plugins import find
from cachekd.store.commit import ScoredUnit, Sink, write_unit
from cachekd.store.identity import Identity, refuse_difference
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name, samples_name
from cachekd.store.plan import Plan, cut, run_digest
from cachekd.store.priors import Priors, best_prior, write_prior
from cachekd.store.samples import SHARD_ROWS, write_samples
from cachekd.store.seal import load_samples
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
        self._sequence = 1 + max((plan.sequence for plan in state.plans.values()), default=0)
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
        settings = {**_CUTTING, "unit_tokens": self._config.unit_tokens}
        # The end of a source may hold nothing but what is left out.
        parts = settings if items else {**settings, "skipped": dict(skipped)}
        run = run_digest(ids, self._identity.capture_id, parts)
        told = run in self._runs
        if not (fresh or best or (skipped and not items and not told)):
            return 0, 0
        shards = self._write_samples(items, keys, ids, fresh)
        missing = list(best.values())
        lengths = [len(items[i].sample.input_ids) for i in missing]
        widest = max((len(items[i].logits.ids) // items[i].logits.rows for i in missing), default=1)
        width = _SCALARS_BYTES + _ENTRY_BYTES * (1 + widest)
        order, units = cut(lengths, bytes_per_token=width, **settings)
        work = [missing[int(i)] for i in order]
        plan = Plan(
            run=run,
            capture_id=self._identity.capture_id,
            sequence=self._sequence,
            keys=Keys.of(keys[i] for i in work),
            units=units,
            threads=1,
            samples=shards,
            skipped={} if told else dict(skipped),
            changed={},
        )
        self._write_units(plan, [items[i] for i in work])
        self._sequence += 1
        self._runs.add(run)
        self._held.add(ids.take(fresh))
        self._done.add(Keys.of(best))
        return len(fresh), len(missing)

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

    def _write_samples(
        self,
        items: Sequence[Item],
        keys: Keys,
        ids: Keys,
        fresh: Sequence[int],
    ) -> tuple[str, ...]:
        """Digests of the samples shards of new samples."""
        digests = []
        for start in range(0, len(fresh), SHARD_ROWS):
            part = fresh[start : start + SHARD_ROWS]
            samples = (items[i].sample for i in part)
            data = write_samples(
                samples, [keys[i] for i in part], [ids[i] for i in part], np.array(part)
            )
            digests.append(bytes_digest(data))
            self.location.keep(samples_name(digests[-1]), data, digests[-1])
        return tuple(digests)

    def _write_units(self, plan: Plan, items: Sequence[Item]) -> None:
        """Write the plan, then unit after unit; items are in the plan's order."""
        digest, data = plan.dump()
        self.location.keep(plan_name(digest), data, digest)
        sink = Sink(
            url=self.location.target,
            plan=digest,
            capture_id=self._identity.capture_id,
            header=self._header,
        )
        for number, unit in enumerate(plan.units):
            started = time.monotonic()
            keys, first = plan.unit_keys(number), unit[0].first
            own = items[first : first + len(keys)]
            scored = ScoredUnit(
                number=number,
                keys=keys,
                documents=[item.sample.input_ids for item in own],
                targets=[item.logits for item in own],
                numerics={"imported": self._config.format},
                seconds=time.monotonic() - started,
                skipped={
                    key: item.bad_rows for key, item in zip(keys, own, strict=True) if item.bad_rows
                },
            )
            write_unit(sink, self.location, scored, self._prior)


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
