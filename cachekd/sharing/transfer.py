"""One cache, or a part of it, to another place: what push, pull and reuse have in common.

Comes in: a `Content` and a location. Goes out: a sealed cache there, and a `Transfer`. The order
makes a transfer that is cut off invisible: shards, samples and priors under the digests of their
bytes; then the identity, without which a folder is no cache; then plans and commit records; then
the seal, then the hint and the card. Any number of transfers and readers may be at work: nothing is
taken away, and a seal follows only one that names less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cachekd.errors import StoreError
from cachekd.sharing.content import Blob, Content
from cachekd.sharing.copier import Copier, Moved, Step, lacking, listings
from cachekd.sharing.others import without_others
from cachekd.signals import stop_on_signals
from cachekd.store.claims import unrepaired
from cachekd.store.identity import Identity, refuse_difference, warn_of_difference
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    plan_name,
    prior_name,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.manifest import Manifest, load_seal, read_manifest
from cachekd.store.seal import checked_content, newest_generation, publish
from cachekd.store.state import CacheState, is_committed, read_state
from cachekd.store.texts import refuse_mix

_FOLDERS = ("plans/", "units/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a transfer did, or would do.

    Attributes:
        moved: counts of what was done.
        files, bytes: that travel, or would.
        manifest: the newest seal afterwards; None of a dry run.
    """

    moved: Moved
    files: int
    bytes: int
    manifest: Manifest | None

    def report(self) -> dict[str, Any]:
        """As plain JSON."""
        if self.manifest is None:
            told = {"files_to_move": self.files, "bytes_to_move": self.bytes}
            return {"dry_run": True, **told, **_only(self.moved, "skipped")}
        sealed = self.manifest
        seal_facts = {"root": sealed.root, "generation": sealed.generation, **sealed.totals}
        return {**self.moved.report(), **seal_facts}


def transfer(
    door: str,
    content: Content,
    into: Location,
    *,
    jobs: int,
    dry_run: bool = False,
    step: Step | None = None,
) -> Transfer:
    """Bring a cache to a location, which may hold some of it, or more of its identity.

    Args:
        door: the command, for messages.
        content: what travels.
        into: where it goes.
        jobs: files that travel at once.
        dry_run: only tell what would travel.
        step: called with bytes done and in all.

    Raises:
        MismatchError: the cache there has another identity (names each field), or one lacks text.
        CorruptCache: bytes at the source are not what its seal names; names the file.
        StoreError: a file cannot be read or written, or the disk is too small.
        Incomplete: stopped by a signal; the same call continues.
    """
    with stop_on_signals() as flag:
        copier = Copier(content.location, into, jobs, step, lambda: flag.asked)
        own, blobs, documents = _lacking(content, into, _known(door, content, into), copier)
        total = sum(blob.size or 0 for blob in blobs.values())
        if dry_run:
            files = len(blobs) + len(documents)
            return Transfer(moved=copier.moved, files=files, bytes=total, manifest=None)
        _check_room(into, total)
        with unrepaired(into, make=True):
            copier.copy(blobs)
            same = _commit(door, own, into, documents, copier) and own is content
            _check_there(into, own.blobs)
            sealed = _seal(door, own, into, same)
    done = copier.moved
    return Transfer(moved=done, files=done.files, bytes=done.bytes, manifest=sealed)


def _lacking(
    content: Content, into: Location, known: Mapping[str, str], copier: Copier
) -> tuple[Content, dict[str, Blob], dict[str, str]]:
    """What is of use at a location; of that what it does not hold: blobs and documents."""
    content = without_others(content, into, known, copier)
    blobs = lacking(into, content.blobs, frozenset(known), copier)
    documents = {
        name: digest for name, digest in content.documents.items() if known.get(name) != digest
    }
    copier.moved.add(files_skipped=len(content.documents) - len(documents))
    return content, blobs, documents


def _check_there(into: Location, blobs: Mapping[str, Blob]) -> None:
    """Look once more before the seal: what was left there long ago may have been collected."""
    listed = listings(into, {name.partition("/")[0] for name in blobs})
    for name, blob in blobs.items():
        if name not in listed or blob.size not in (None, listed[name].size):
            raise StoreError(
                f"{into.path(name)} went away meanwhile (cachekd gc?). Nothing was sealed: run the "
                "same command again"
            )


def refuse_other(door: str, content: Content, into: Location) -> bool:
    """Refuse a location that holds a cache of another identity; warn of another provenance.

    Returns:
        whether it holds a cache.

    Raises:
        MismatchError: names each field that differs.
    """
    found = has_cache(into)
    if found:
        refuse_pair(door, content.identity, read_identity(into), content.location.url, into.url)
    return found


def refuse_pair(door: str, left: Identity, right: Identity, left_url: str, right_url: str) -> None:
    """The same of two identities."""
    refuse_difference(door, left.facts(), right.facts(), left_url, right_url)
    warn_of_difference(door, left.provenance, right.provenance, left_url, right_url)


def refuse_text(door: str, content: Content, there: Manifest | None, into: Location) -> None:
    """Refuse to bring a cache without text to one with it, or the other way round."""
    if there is not None:
        mine, theirs = content.manifest.lacks_text(), there.lacks_text()
        refuse_mix(door, mine, theirs, content.location.url, into.url)


def _known(door: str, content: Content, into: Location) -> dict[str, str]:
    """Files that the newest seal of a location names, with their digests; none without a seal."""
    sealed = read_manifest(into) if refuse_other(door, content, into) else None
    refuse_text(door, content, sealed, into)
    if sealed is None:
        return {}
    shards = [facts.digest for facts in sealed.shards.values()]
    beside = [facts.digest for facts in sealed.attention.values()]
    return {
        **sealed.files,
        **{shard_name(digest): digest for digest in shards},
        **{attention_name(digest): digest for digest in beside},
        **{samples_name(digest): digest for digest in sealed.samples},
        **{prior_name(digest): digest for digest in sealed.priors},
    }


def _check_room(into: Location, needed: int) -> None:
    """Refuse a location that cannot be written, or has too little room."""
    into.check_writable()
    free = into.free_bytes()
    if free is not None and needed > free:
        raise StoreError(
            f"the disk of {into.url} has {free / 1e9:.3f} GB free; {needed / 1e9:.3f} GB would "
            "come. Nothing was copied: free space, choose another place, or take a part "
            "(--keys-from, --domain, --fraction)"
        )


def _commit(
    door: str, content: Content, into: Location, documents: Mapping[str, str], copier: Copier
) -> bool:
    """Write identity, plans and records; whether all of them are there as they are in the source.

    A commit record that another writer has made of the same unit stays.
    """
    write_identity(into, content.identity)
    own = all(into.has(name, digest) for name, digest in content.identity_files().items())
    if not own:
        refuse_other(door, content, into)  # another writer may have been first
    others: list[str] = []

    def one(name: str) -> None:
        data = bytes(copier.read(name, documents[name]))
        if not copier.again(lambda: _put(into, name, data)):
            others.append(name)
        copier.moved.add(files=1, bytes=len(data))

    for folder in _FOLDERS:  # a record comes after its plan
        copier.each([name for name in documents if name.startswith(folder)], one)
    return own and not others


def _put(into: Location, name: str, data: bytes) -> bool:
    """Write a plan or a record; False if there is another that is whole."""
    if into.create(name, data) or into.holds(name, data):
        return True
    folder, base = name.split("/")
    plan, _, number = base.removesuffix(".json").partition("-")
    if folder == "units" and is_committed(into, plan, int(number)):
        return False
    into.replace(name, data)
    return True


def _seal(door: str, content: Content, into: Location, same: bool) -> Manifest:
    """Seal what came with what was sealed there: nothing of others who are on their way."""
    while True:
        last = newest_generation(into)
        before = load_seal(into, last) if last else None
        refuse_text(door, content, before, into)  # another writer may have been first
        named = {**(before.files if before else {}), **content.documents}
        documents = {name for name in named if name.startswith(_FOLDERS)}
        if same and content.part is None and documents == content.documents.keys():
            fields, index_data = content.fields(), content.index_bytes()
        else:
            state = _only_named(read_state(into), documents)
            fields, index_data = checked_content(into, state, leave_out=True)
            fields |= {"origins": [_origin(content)]}
        sealed = publish(into, content.identity, fields, index_data, after=last)
        if sealed is not None:
            return sealed


def _only_named(state: CacheState, documents: Collection[str]) -> CacheState:
    """A state as far as these plans and commit records tell of it."""
    return replace(
        state,
        plans={own: plan for own, plan in state.plans.items() if plan_name(own) in documents},
        units={own: unit for own, unit in state.units.items() if unit_name(*own) in documents},
    )


def _origin(content: Content) -> dict[str, Any]:
    part = {"shards": "all"} if content.part is None else dict(content.part)
    return {**content.origin(), **part}


def _only(moved: Moved, word: str) -> dict[str, int]:
    return {name: count for name, count in moved.report().items() if word in name}
