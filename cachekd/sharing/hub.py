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
from cachekd.store.reader import open_cache
from cachekd.store.seal import seal_data

_FILES_A_COMMIT = 100
_MEASURED = 200  # records that the card's mean is taken of


def push_to_hub(
    config: PushConfig, content: Content, *, step: Step | None = None
) -> dict[str, Any]:
    """Commit what a dataset repo lacks of a cache.

    Args:
        config: names the repo and its licence.
        content: the cache.
        step: called with bytes done and in all.

    Returns:
        a report of plain JSON types.

    Raises:
        MismatchError: the repo holds a cache of another identity.
        ConfigError: it holds records that this cache lacks, or no token is found.
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
    _check_pair(repo, head, there, content)
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
    before = _check_pair(repo, head, there, content)
    same = before is not None and before.root == content.manifest.root
    generation = content.manifest.generation
    if before is not None:
        generation = before.generation if same else max(generation, before.generation + 1)
    files = _last(config, content, copier, generation, keep_seal=same)
    changed = {name: data for name, data in files.items() if not holds(there, name, data)}
    moved.add(files_skipped=len(files) - len(changed))
    if changed:
        repo.commit(changed, f"Seal generation {generation} of a cachekd cache", after=head)
        moved.add(files=len(changed), bytes=sum(map(len, changed.values())))


def _last(
    config: PushConfig, content: Content, copier: Copier, generation: int, *, keep_seal: bool
) -> dict[str, bytes]:
    """Files of the last commit: all that makes the others a cache."""
    place = f"hf://datasets/{config.repo}"
    measured = _measured(content.location.target)
    text = card(
        content.identity, content.manifest, place=place, license=config.license, further=measured
    )
    seal = {manifest_name(generation): seal_data(content.fields(), generation)}
    return {
        **copier.read_all({**content.identity_files(), **content.documents}),
        index_name(content.manifest.index): content.index_bytes(),
        **({} if keep_seal else seal),
        HINT: dump_document("hint", {"newest": manifest_name(generation)}),
        CARD: text.encode(),
    }


def _measured(url: str) -> dict[str, str]:
    """What the targets keep, as the mean over records that are spread evenly."""
    cache = open_cache(url, attention=False)
    numbers = np.unique(np.linspace(0, len(cache) - 1, min(_MEASURED, len(cache))).astype(int))
    if not len(numbers):
        return {}
    tails = [record.logits.tail for record in cache.read(numbers.tolist())]
    mass = float(-np.expm1(np.concatenate(tails).astype(np.float64)).mean())
    return {f"Probability kept in the head, mean of {len(numbers)} samples": f"{mass:.4f}"}


def _check_pair(
    repo: HubRepo, head: str | None, there: Mapping[str, str], content: Content
) -> Manifest | None:
    """Refuse a repo with a cache of another identity, or with more; the seal that it has."""
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
