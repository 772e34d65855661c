"""One cache, or a part of it, to another place: what push, pull and reuse have in common.

Comes in: a `Content` and a location. Goes out: a sealed cache there, and a `Transfer`. The order
makes a transfer that is cut off invisible: shards, samples and priors under the digests of their
bytes; then the identity, without which a folder is no cache; then plans and commit records; then
the seal, then the hint and the card. Any number of transfers and readers may be at work: nothing is
taken away, and a seal follows only one that names less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.errors import StoreError
from cachekd.sharing.content import Content
from cachekd.sharing.copier import Copier, Moved, Step, lacking, listings
from cachekd.signals import stop_on_signals
from cachekd.store.identity import Identity, refuse_difference, warn_of_difference
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, prior_name, samples_name, shard_name
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.seal import newest_generation, publish, seal
from cachekd.store.state import is_committed

_FOLDERS = ("plans", "units")


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
        MismatchError: there is a cache of another identity; names each field that differs.
        CorruptCache: bytes at the source are not what its seal names; names the file.
        StoreError: a file cannot be read or written, or the disk is too small.
        Incomplete: stopped by a signal; the same call continues.
    """
    refuse_other(door, content, into)
    into.check_writable()
    with stop_on_signals() as flag:
        copier = Copier(content.location, into, jobs, step, lambda: flag.asked)
        known = _sealed_there(into)
        blobs = lacking(into, content.blobs, frozenset(known), copier)
        documents = {
            name: digest for name, digest in content.documents.items() if known.get(name) != digest
        }
        copier.moved.add(files_skipped=len(content.documents) - len(documents))
        total = sum(blob.size or 0 for blob in blobs.values())
        if dry_run:
            files = len(blobs) + len(documents)
            return Transfer(moved=copier.moved, files=files, bytes=total, manifest=None)
        _check_room(into, total)
        copier.copy(blobs)
        same = _commit(door, content, into, documents, copier)
        sealed = _seal(content, into, same)
    moved = copier.moved
    return Transfer(moved=moved, files=moved.files, bytes=moved.bytes, manifest=sealed)


def refuse_other(door: str, content: Content, into: Location) -> None:
    """Refuse a location that holds a cache of another identity; warn of another provenance.

    Raises:
        MismatchError: names each field that differs.
    """
    if has_cache(into):
        refuse_pair(door, content.identity, read_identity(into), content.location.url, into.url)


def refuse_pair(door: str, left: Identity, right: Identity, left_url: str, right_url: str) -> None:
    """The same of two identities."""
    refuse_difference(door, left.facts(), right.facts(), left_url, right_url)
    warn_of_difference(door, left.provenance, right.provenance, left_url, right_url)


def _sealed_there(into: Location) -> dict[str, str]:
    """Files that the newest seal of a location names, with their digests; none without a seal."""
    sealed = read_manifest(into) if has_cache(into) else None
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
    refuse_other(door, content, into)  # another writer may have been first
    others: list[str] = []

    def one(name: str) -> None:
        data = bytes(copier.read(name, documents[name]))
        if not copier.again(lambda: _put(into, name, data)):
            others.append(name)
        copier.moved.add(files=1, bytes=len(data))

    for folder in _FOLDERS:  # a record comes after its plan
        copier.each([name for name in documents if name.startswith(f"{folder}/")], one)
    identity = content.identity_files().items()
    return not others and all(into.has(name, digest) for name, digest in identity)


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


def _seal(content: Content, into: Location, same: bool) -> Manifest:
    """Seal what is there: where that is what the source has, with the source's own seal."""
    while same and content.part is None:
        last = newest_generation(into)
        if {*listings(into, _FOLDERS)} != {*content.documents}:
            break
        fields = content.fields()
        sealed = publish(into, content.identity, fields, content.index_bytes(), after=last)
        if sealed is not None:
            return sealed
    origin = {"root": content.manifest.root, "cache": content.location.url}
    part = dict(content.part) if content.part is not None else {"shards": "all"}
    return seal(into, leave_out=True, origin={**origin, **part})


def _only(moved: Moved, word: str) -> dict[str, int]:
    return {name: count for name, count in moved.report().items() if word in name}
