"""Push to a dataset repo of the hub, which `datasets.load_dataset` and the viewer open.

Comes in: a sealed cache and a repo. Goes out: commits: shards, samples and priors first, a number
of files each; then one commit of everything that makes the folder a cache: identity, plans, commit
records, seal, hint and card. A commit of the hub is seen whole or not at all. What the repo holds
with the same digest does not travel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cachekd.config import PushConfig
from cachekd.errors import ConfigError
from cachekd.sharing.content import Blob, Content
from cachekd.sharing.copier import Copier, Moved, Step
from cachekd.sharing.derive import refuse_kept
from cachekd.sharing.hub_api import HubRepo, holds
from cachekd.store.card import card
from cachekd.store.identity import refuse_difference
from cachekd.store.identity_files import read_identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION_CAPTURE,
    CACHE,
    CAPTURE,
    CARD,
    HINT,
    dump_document,
    index_name,
    manifest_name,
)
from cachekd.store.manifest import Manifest, generation_of, load_manifest
from cachekd.store.seal import seal_data
from cachekd.store.shards import Shard
from cachekd.store.texts import refuse_mix

_FILES_A_COMMIT = 100
_MEASURED = 200  # records that the card's mean is taken of


def push_to_hub(
    config: PushConfig, content: Content, *, step: Step | None = None
) -> dict[str, Any]:
    """Commit what a dataset repo lacks of a cache; a report of plain JSON types.

    Args:
        config: names the repo and its licence.
        content: the cache.
        step: called with bytes done and in all.

    Raises:
        MismatchError: the repo holds a cache of another identity, or one of the two lacks text.
        ConfigError: it holds records that this cache lacks, or what is to be left out, or no token
            is found.
        CorruptCache: a file of the cache is altered; names it.
        StoreError: the hub is switched off, cannot be reached, or refuses.
    """
    assert config.repo is not None, "the caller looked"
    repo, moved = HubRepo(config.repo, config.private), Moved()
    copier = Copier(content.location, content.location, config.jobs)
    head = repo.head()
    there = repo.files(head) if head else {}
    blobs = _lacking(there, content, copier)
    moved.add(files_skipped=len(content.blobs) - len(blobs))
    total = sum(blob.size or 0 for blob in blobs.values())
    told = {"to": f"hf://datasets/{config.repo}", "root": content.manifest.root}
    _check_pair(config, repo, head, there, content)
    if config.dry_run:
        return {**told, "dry_run": True, "files_to_move": len(blobs), "bytes_to_move": total}
    repo.make()
    for names in _parts(sorted(blobs)):
        with _at_hand(content, {name: blobs[name] for name in names}, config.jobs) as paths:
            repo.commit(paths, f"Add {len(names)} files of a cachekd cache")
            moved.add(files=len(names), bytes=sum(p.stat().st_size for p in paths.values()))
        if step is not None:
            step(moved.bytes, max(total, moved.bytes))
    _seal(config, repo, content, copier, moved)
    return {**told, **moved.report(), **content.manifest.totals}


@contextmanager
def _at_hand(content: Content, blobs: Mapping[str, Blob], jobs: int) -> Iterator[dict[str, Path]]:
    """Within: files of a cache as paths here, each looked at; of a cache elsewhere, copies."""
    with tempfile.TemporaryDirectory(prefix="cachekd-hub-") as folder:
        here = content.location if content.location.local else Location(folder)
        copier = Copier(content.location, here, jobs)
        if here is content.location:
            copier.each(blobs, lambda name: copier.judge(name, blobs[name].digest))
        else:
            copier.copy(blobs)
        yield {name: Path(here.path(name)) for name in blobs}


def _seal(
    config: PushConfig, repo: HubRepo, content: Content, copier: Copier, moved: Moved
) -> None:
    """The last commit, which makes a cache of what is there; none where all of it is the same."""
    head = repo.make()
    there = repo.files(head)
    before = _check_pair(config, repo, head, there, content)
    generation = content.manifest.generation
    same = before is not None and before.root == content.manifest.root
    if before is not None:
        generation = before.generation if same else max(generation, before.generation + 1)
    # Of the same records that another producer sealed, plans and commit records stay as they are.
    others = same and before is not None and dict(before.files) != dict(content.manifest.files)
    files = _last(config, content, copier, generation, keep_seal=same, keep_documents=others)
    changed = {name: data for name, data in files.items() if not holds(there, name, data)}
    moved.add(files_skipped=len(files) - len(changed))
    if changed:
        repo.commit(changed, f"Seal generation {generation} of a cachekd cache", after=head)
        moved.add(files=len(changed), bytes=sum(map(len, changed.values())))


def _last(
    config: PushConfig,
    content: Content,
    copier: Copier,
    generation: int,
    *,
    keep_seal: bool,
    keep_documents: bool,
) -> dict[str, bytes]:
    """Files of the last commit: all that makes the others a cache."""
    place = f"hf://datasets/{config.repo}"
    measured = _measured(content)
    text = card(
        content.identity, content.manifest, place=place, license=config.license, further=measured
    )
    seal = {manifest_name(generation): seal_data(content.fields(), generation)}
    documents = {} if keep_documents else {**content.identity_files(), **content.documents}
    return {
        **copier.read_all(documents),
        index_name(content.manifest.index): content.index_bytes(),
        **({} if keep_seal else seal),
        HINT: dump_document("hint", {"newest": manifest_name(generation)}),
        CARD: text.encode(),
    }


def _measured(content: Content) -> dict[str, str]:
    """What the targets keep, as the mean over records that are spread evenly; no text is needed."""
    shards = list(content.manifest.shards.values())
    ends = np.cumsum([facts.rows for facts in shards], dtype=np.int64)
    rows = int(ends[-1]) if shards else 0
    numbers = np.unique(np.linspace(0, rows - 1, min(_MEASURED, rows)).astype(np.int64))
    tails, own = [], np.searchsorted(ends, numbers, side="right")
    for place in np.unique(own):
        facts = shards[int(place)]
        within = numbers[own == place] - (ends[place] - facts.rows)
        shard = Shard(content.location, facts, content.identity.capture_id)
        tails += [targets.tail for _, _, targets in shard.records(within.tolist())]
    if not tails:
        return {}
    mass = float(-np.expm1(np.concatenate(tails).astype(np.float64)).mean())
    return {f"Probability kept in the head, mean of {len(numbers)} records": f"{mass:.4f}"}


def _check_pair(
    config: PushConfig,
    repo: HubRepo,
    head: str | None,
    there: Mapping[str, str],
    content: Content,
) -> Manifest | None:
    """Refuse a repo with a cache of another identity, or with more; the seal that it has."""
    if config.changes:
        refuse_kept(f"hf://datasets/{repo.repo}", there, content)
    if head is None or CACHE not in there:
        return None
    newest = max((g for g in map(generation_of, there) if g is not None), default=None)
    with tempfile.TemporaryDirectory(prefix="cachekd-hub-") as folder:
        for name in (CACHE, CAPTURE, ATTENTION_CAPTURE):
            if name in there:
                repo.fetch(name, head, folder)
        other = read_identity(Location(folder)).facts()
        place = f"hf://datasets/{repo.repo}"
        refuse_difference("push", content.identity.facts(), other, content.location.url, place)
        if newest is None:
            return None
        name = manifest_name(newest)
        sealed = load_manifest(name, repo.fetch(name, head, folder), newest)
    mine = content.manifest.lacks_text()
    refuse_mix("push", mine, sealed.lacks_text(), content.location.url, place)
    lacking = sealed.shards.keys() - content.manifest.shards.keys()
    if lacking:
        raise ConfigError(
            f"push: {place} holds {len(lacking)} shards that {content.location.url} lacks, and on "
            f"the hub nothing is united. Pull it into the cache first: cachekd pull {place} CACHE"
        )
    return sealed


def _lacking(there: Mapping[str, str], content: Content, copier: Copier) -> dict[str, Blob]:
    """Files of a cache that a repo does not hold; of a file in Git the bytes tell its id."""
    blobs = {name: blob for name, blob in content.blobs.items() if there.get(name) != blob.digest}
    in_git = {name: blob.digest for name, blob in blobs.items() if name in there}
    held = {name for name, data in copier.read_all(in_git).items() if holds(there, name, data)}
    return {name: blob for name, blob in blobs.items() if name not in held}


def _parts(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _FILES_A_COMMIT):
        yield names[start : start + _FILES_A_COMMIT]
