"""Random damage to any file of a cache, and what verify, readers and repair make of it; counted.

Comes in: a small cache with every kind of file. Goes out: counts by kind of file. Hint and card are
trusted by nobody: damage to them must change no record, and need not be found.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
from damage import NOT_TRUSTED, flipped, put, snapshot
from tiny import chat_rows, save_tokenizer, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import StoreError
from cachekd.store.io import Location
from cachekd.store.manifest import read_manifest
from cachekd.store.reader import Cache
from cachekd.store.verify import examine
from cachekd.types import Record

Counts = dict[str, Counter[str]]
CONTEXT = 128
READ = 2  # records of a shard; to read one is to check all its bytes
IN_SHARDS = ("logits", "attention", "priors")


def make_cache(root: Path, *, first: int = 0) -> Path:
    """Two runs, responses that the teacher wrote, attention, priors: every kind of file."""
    teacher = root / "teacher"
    if not teacher.exists():
        vocab = save_tokenizer(teacher)
        config = {"model_type": "llama", "vocab_size": vocab, "max_position_embeddings": CONTEXT}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
        (teacher / "config.json").write_text(json.dumps({**config, **heads}))
    cache = root / f"cache-{first}"
    for number, further in enumerate(({}, {"generate": "greedy", "max_new_tokens": 4})):
        rows = chat_rows(6, first=first + 20 * number)
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(teacher),
                backend="dummy",
                data=(str(write_rows(root / f"data-{first}-{number}.jsonl", rows)),),
                cache=str(cache),
                attention="maps",
                logits_top_k=4,
                threads=1,
                batch_tokens=120,
                unit_tokens=120,
                **further,
            )
        )
    return cache


def kind_of(name: str) -> str:
    """What a file is for: its folder, or what it says of the whole cache."""
    if name in NOT_TRUSTED:
        return {"README.md": "card", "manifest.json": "hint"}[name]
    if name.endswith(("cache.json", "capture.json")):
        return "identity"
    return "seal" if name.startswith("manifest-") else name.split("/")[0]


def record_bytes(record: Record) -> bytes:
    """All of a record."""
    logits, attention = record.logits, record.attention
    arrays = [record.input_ids, record.roles, logits.offsets, logits.ids, logits.logprobs]
    arrays += [logits.tail, logits.next_logprob, logits.entropy, *logits.lognorm.values()]
    assert attention is not None, "the cache has it"
    arrays += [attention.rows, attention.offsets, attention.keys, attention.probs, attention.rest]
    about = f"{record.prompt_length} {record.domain} {record.weight}".encode()
    return b"|".join([record.key, about, *(array.tobytes() for array in arrays)])


@dataclass
class Patient:
    """A cache that is damaged and healed, file by file.

    Attributes:
        cache: its folder.
        whole: bytes of each file.
        truth: each record's bytes by sample id.
        readers: samples whose records need a file, for shards; one of each shard stands for others.
        shards: samples of each shard of logits.
        counts: by kind of file.
    """

    cache: Path
    whole: dict[str, bytes] = field(default_factory=dict)
    truth: dict[bytes, bytes] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    shards: dict[str, list[int]] = field(default_factory=dict)
    counts: Counts = field(default_factory=lambda: defaultdict(Counter))

    opened: Cache = field(init=False)
    _as_sent: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.whole = snapshot(self.cache)
        opened = self.opened = cachekd.open_cache(str(self.cache))
        self._as_sent = pickle.dumps(opened)
        self.truth = {record.sample_id: record_bytes(record) for record in opened}
        manifest = read_manifest(Location(str(self.cache)))
        assert manifest is not None
        digests, shards = opened.shards_of(np.arange(len(opened), dtype=np.int32))
        for number, digest in enumerate(digests):
            own = np.flatnonzero(shards == number).tolist()[:READ]
            attention = manifest.attention[digest].digest
            self.readers[f"logits/{digest}.parquet"] = own
            self.readers[f"attention/{attention}.safetensors"] = own
            self.shards[digest] = own
        self.first = [own[0] for own in self.shards.values()]

    @property
    def names(self) -> list[str]:
        return list(self.whole)

    def put(self, damaged: dict[str, bytes]) -> None:
        for name, data in damaged.items():
            put(self.cache / name, data)

    def heal(self, names: Iterable[str]) -> None:
        for name in names:
            put(self.cache / name, self.whole[name])

    def heal_all(self) -> None:
        """Every file as it was, and no other."""
        for name, data in snapshot(self.cache).items():
            if name not in self.whole:
                (self.cache / name).unlink()
            elif data != self.whole[name]:
                put(self.cache / name, self.whole[name])
        self.heal(self.whole.keys() - snapshot(self.cache).keys())

    def read(self, names: Iterable[str], *, partial: bool = False) -> str:
        """What a new reader gets of the records that files concern: true, refused or wrong."""
        own = [number for name in names for number in self.readers.get(name, ())]
        try:
            opened = self._opened(names, partial)
            numbers = list(range(len(opened))) if partial else own or self.first
            found = opened.read(numbers)
        except StoreError as error:
            named = any(name in str(error) for name in names)
            return "refused" if named else "refused without the name of the file"
        true = all(self.truth.get(r.sample_id) == record_bytes(r) for r in found)
        same = partial or opened.sample_ids == list(self.truth)
        return "true" if true and same else "wrong"

    def _opened(self, names: Iterable[str], partial: bool) -> Cache:
        """A new cache; of shards and priors as a loader's worker gets it, with no file open."""
        if not partial and all(kind_of(name) in IN_SHARDS for name in names):
            return cast(Cache, pickle.loads(self._as_sent))
        return cachekd.open_cache(str(self.cache), partial=partial)

    def found(self, names: Iterable[str], *, every_shard: bool = False) -> bool:
        """Whether verify names each of these; unless asked it decodes their own shards alone."""
        own = {number for name in names for number in self.readers.get(name, ())}
        concerned = {digest for digest, numbers in self.shards.items() if own & {*numbers}}

        def draw(digests: Iterable[str]) -> frozenset[str]:
            return frozenset(d for d in digests if every_shard or d in concerned)

        found = examine(Location(str(self.cache)), partial=False, draw=draw).findings
        return {problem.file for problem in found} >= {*names}

    def suffer(
        self, damaged: dict[str, bytes], *, verified: bool = True, every_shard: bool = False
    ) -> None:
        """Damage files of a kind, read them, perhaps verify, read again, heal them, and count."""
        names = [name for name, data in damaged.items() if data != self.whole[name]]
        if not names:
            return
        self.put({name: damaged[name] for name in names})
        counts = self.counts[kind_of(names[0])]
        counts["damaged"] += 1
        first = self.read(names)
        counts[first] += 1
        if verified:
            if NOT_TRUSTED.isdisjoint(names):
                counts["verified"] += 1
                counts["found"] += self.found(names, every_shard=every_shard)
            counts["another answer at the second start"] += first != self.read(names)
        self.heal(names)


def flips(patient: Patient, count: int, seed: int, *, verify_one_in: int = 1) -> None:
    """Random bits over all bytes of all files, half by size and half file by file."""
    rng = np.random.default_rng(seed)
    sizes = np.array([len(patient.whole[name]) for name in patient.names], float)
    weights = 0.5 * sizes / sizes.sum() + 0.5 / len(sizes)
    for i, number in enumerate(rng.choice(len(sizes), count, p=weights)):
        name = patient.names[int(number)]
        data = patient.whole[name]
        place, bits = int(rng.integers(len(data))), int(rng.integers(1, 256))
        verified = i % verify_one_in == 0
        patient.suffer({name: flipped(data, place, bits)}, verified=verified)


def truncations(patient: Patient, count: int, seed: int) -> None:
    """Files that end too early, and files that go on."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = patient.names[i % len(patient.names)]
        data = patient.whole[name]
        kept = int(rng.integers(len(data)))
        patient.suffer({name: data[:kept] if i % 10 else data + bytes(kept + 1)})


def zeros(patient: Patient, count: int, seed: int) -> None:
    """Pages that the disk lost: runs of zeros, from one byte to the whole file."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = patient.names[i % len(patient.names)]
        data = patient.whole[name]
        start = int(rng.integers(len(data))) if i >= len(patient.names) else 0
        size = int(rng.integers(1, len(data))) if i >= len(patient.names) else len(data)
        patient.suffer(
            {name: data[:start] + bytes(len(data[start : start + size])) + data[start + size :]}
        )


def swaps(patient: Patient) -> None:
    """Every two valid files of one folder, with each other's names."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in patient.names:
        if name not in NOT_TRUSTED:
            folders[name.rpartition("/")[0]].append(name)
    for names in folders.values():
        for left, right in combinations(names, 2):
            damaged = {left: patient.whole[right], right: patient.whole[left]}
            patient.suffer(damaged, every_shard=True)


def summary(counts: Counts) -> dict[str, dict[str, int]]:
    """Counts as plain JSON, zeros left out."""
    return {kind: {k: n for k, n in sorted(c.items()) if n} for kind, c in sorted(counts.items())}
