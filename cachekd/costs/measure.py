"""Measuring candidates: one scoring of the sample, every setting taken from the same dense rows.

Comes in: a loaded teacher, a sample and candidates. Goes out: `Figures` of each candidate: what it
retains, how far it is from the dense teacher, and the bytes of a real shard of it. Dense rows live
for one tile; sparse targets of the measured half are kept until its shard has been weighed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cachekd.capture.trial import prior_budget
from cachekd.codecs import Codec, CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.codecs._priors import Prior
from cachekd.costs.candidates import Candidate
from cachekd.costs.sample import DataSample, Document
from cachekd.costs.support import keep, variance
from cachekd.data.digests import bytes_digest
from cachekd.evaluation.dense import DenseRows, Float64, dense_rows, joined
from cachekd.evaluation.fidelity import Reference, Unigram, fidelity, header_of, references
from cachekd.plugins import find
from cachekd.store.shards import write_shard
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

CODEC = "packed"
_Scored = tuple[TopKLogits, dict[str, Float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes of the measured half as one shard, and the tokens they are for.

    Attributes:
        targets: encoded targets.
        input_ids: token ids.
        records: keys and counts.
        footer: what the file takes beside columns, for each of its row groups.
        prior: the prior's file, once a cache.
        tokens: tokens of the measured half.
    """

    targets: int
    input_ids: int
    records: int
    footer: float
    prior: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a candidate came to.

    Attributes:
        candidate: the setting.
        means: of each figure of `fidelity`, the mean over rows. A sampled setting has no KL; its
            ``error`` is its variance.
        kl_error: standard error of the mean of ``kl_unigram`` over documents, or None.
        entries: entries of a captured row, mean.
        size: its bytes.
    """

    candidate: Candidate
    means: dict[str, float]
    kl_error: float | None
    entries: float
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """A candidate while it is measured: sums a document, and its targets."""

    candidate: Candidate
    header: CodecHeader
    codec: Codec
    prior: Prior
    unigram: Unigram
    random: np.random.Generator
    sums: list[dict[str, float]] = field(default_factory=list)
    records: list[TopKLogits] = field(default_factory=list)

    def score(self, tile: DenseRows, dense: dict[float, Reference]) -> _Scored:
        """Targets of a tile, and their figures [N]."""
        targets = keep(tile, self.candidate.selection, self.random)
        if self.candidate.sampled:
            figures = fidelity(dense, targets, None)
            figures = {name: v for name, v in figures.items() if name.startswith("mass")}
            return targets, figures | {"error": variance(tile, self.candidate.selection)}
        encoded = (self.codec.encode(targets), targets.rows, len(targets.ids))
        return targets, fidelity(dense, self.codec.decode([encoded])[0], self.unigram)

    def add(self, scored: Sequence[_Scored], document: Document) -> None:
        """Take in a document, tile after tile."""
        names = scored[0][1]
        self.sums.append({n: float(sum(f[n].sum() for _, f in scored)) for n in names})
        self.records.append(joined([targets for targets, _ in scored], document.rows))


def measure(
    teacher: Teacher,
    sample: DataSample,
    candidates: Sequence[Candidate],
    *,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[tuple[Figures, ...], float]:
    """Figures of each candidate, and the teacher's mean entropy in nats.

    Args:
        teacher: loaded teacher.
        sample: documents to learn from and to measure.
        candidates: settings; all of one source.
        seed: of the draws of sampled settings.
        progress: told the tokens of each document that is done.

    Raises:
        TeacherError, MemoryError: see `Teacher.score`.
    """
    trials = _learn(teacher, sample, candidates, seed, progress)
    rows, entropy = [], 0.0
    for document in sample.measured:
        scored: list[list[_Scored]] = [[] for _ in trials]
        for tile in _dense(teacher, document, candidates):
            dense = references(tile)
            entropy += float(dense[1.0].entropy_N.sum())
            for trial, parts in zip(trials, scored, strict=True):
                parts.append(trial.score(tile, dense))
        for trial, parts in zip(trials, scored, strict=True):
            trial.add(parts, document)
        rows.append(int(document.rows.sum()))
        progress(len(document.input_ids))
    figures = tuple(_figures(trial, sample.measured, np.array(rows)) for trial in trials)
    return figures, entropy / sum(rows)


def _dense(
    teacher: Teacher, document: Document, candidates: Sequence[Candidate]
) -> Iterator[DenseRows]:
    """Tiles of a document, scored alone."""
    selection = candidates[0].selection
    return dense_rows(
        teacher,
        [document.input_ids],
        len(document.input_ids),
        vocab_size=selection.vocab_size,
        temperatures=selection.temperatures,
        wanted=[document.rows],
        best=max(one.selection.k for one in candidates),
    )


def _learn(
    teacher: Teacher,
    sample: DataSample,
    candidates: Sequence[Candidate],
    seed: int,
    progress: Callable[[int], None],
) -> list[_Trial]:
    """A trial for each candidate, its prior learned of the first half as a capture would."""
    budget, wanted = prior_budget(sample.tokens)
    randoms = [np.random.default_rng([seed, place]) for place in range(len(candidates))]
    records: list[list[TopKLogits]] = [[] for _ in candidates]
    for document in sample.learned:
        if sum(part.rows for part in records[0]) < wanted:
            for tile in _dense(teacher, document, candidates):
                for one, random, parts in zip(candidates, randoms, records, strict=True):
                    parts.append(keep(tile, one.selection, random))
        progress(len(document.input_ids))
    return [
        _trial(one, learn_prior(parts, one.selection.vocab_size, budget=budget), random)
        for one, random, parts in zip(candidates, randoms, records, strict=True)
    ]


def _trial(candidate: Candidate, prior: Prior, random: np.random.Generator) -> _Trial:
    digest = bytes_digest(prior.dump())
    header = header_of(candidate.identity, candidate.selection, CODEC, digest)
    return _Trial(
        candidate=candidate,
        header=header,
        codec=find("codecs", CODEC)(header, prior),
        prior=prior,
        unigram=Unigram.of(prior.log_unigram),
        random=random,
    )


def _figures(trial: _Trial, documents: Sequence[Document], rows_D: np.ndarray) -> Figures:
    sums = {name: np.array([one[name] for one in trial.sums]) for name in trial.sums[0]}
    means = {name: float(values.sum() / rows_D.sum()) for name, values in sums.items()}
    kl = sums.get("kl_unigram")
    entries = sum(len(record.ids) for record in trial.records)
    return Figures(
        candidate=trial.candidate,
        means=means,
        kl_error=None if kl is None else _ratio_error(kl, rows_D),
        entries=entries / int(rows_D.sum()),
        size=_weigh(trial, documents),
    )


def _ratio_error(sums_D: Float64, rows_D: np.ndarray) -> float:
    """Standard error of sum / rows, documents being what was drawn."""
    count = len(sums_D)
    off = sums_D - rows_D * sums_D.sum() / rows_D.sum()
    return float(np.sqrt(count / max(1, count - 1) * (off**2).sum()) / rows_D.sum())


def _weigh(trial: _Trial, documents: Sequence[Document]) -> Size:
    """The measured half as a shard, and what its columns take."""
    data, facts = write_shard(
        trial.header,
        trial.candidate.identity.capture_id,
        [document.key for document in documents],
        [document.input_ids for document in documents],
        trial.records,
        trial.prior,
    )
    metadata = pq.read_metadata(pa.BufferReader(data))
    columns = _column_bytes(metadata)
    targets, input_ids = columns["targets"], columns["input_ids.list.element"]
    return Size(
        targets=targets,
        input_ids=input_ids,
        records=sum(columns.values()) - targets - input_ids,
        footer=(facts.bytes - sum(columns.values())) / metadata.num_row_groups,
        prior=len(trial.prior.dump()),
        tokens=facts.tokens,
    )


def _column_bytes(metadata: pq.FileMetaData) -> Counter[str]:
    """Bytes of each column of a Parquet file, by its path."""
    sizes: Counter[str] = Counter()
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            sizes[column.path_in_schema] += column.total_compressed_size
    return sizes
