"""Verifying identity, samples, responses, index and seal: all of a cache but units and shards.

Comes in: a location and what is good of its plans and records. Goes out: problems; a file that is
looked at by several checks is told of once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cachekd.data.digests import differences, json_id
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.collected import collect
from cachekd.store.committed import without_samples
from cachekd.store.content import content_of
from cachekd.store.generated import generated_files
from cachekd.store.identity import Identity, capture_id
from cachekd.store.index import load_index
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION_CAPTURE,
    CACHE,
    CAPTURE,
    attention_name,
    index_name,
    manifest_name,
    prior_name,
    read_document,
    samples_name,
    shard_name,
)
from cachekd.store.manifest import Manifest, generations, hinted_generation, load_seal
from cachekd.store.problems import (
    Problem,
    document_problem,
    file_problem,
    problem_of,
)
from cachekd.store.samples import SampleTable
from cachekd.store.seal import captured, samples_table
from cachekd.store.shards import ShardFacts
from cachekd.store.state import CacheState
from cachekd.store.tables import RESPONSES, read_table

_SHOWN = 300
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_identity(location: Location, identity: Identity) -> list[Problem]:
    """Spelling of the identity's documents, and whether its ids are digests of its facts."""
    problems = [document_problem(location, "cache", CACHE)]
    problems += [document_problem(location, "capture", name) for name in captures(identity)]
    ids = [
        (CACHE, "source_id", json_id(dict(identity.source)), identity.source_id),
        (CAPTURE, "capture_id", _id(identity, identity.capture), identity.capture_id),
    ]
    if identity.attention is not None:
        own = _id(identity, identity.attention)
        ids.append((ATTENTION_CAPTURE, "capture_id", own, identity.attention_id or ""))
    for name, field, expected, found in ids:
        if found != expected:
            problems.append(Problem(file=name, expected=f"{field} {expected}", found=found))
    return [problem for problem in problems if problem is not None]


def captures(identity: Identity) -> list[str]:
    """Files that say what was captured."""
    return [CAPTURE] if identity.attention is None else [CAPTURE, ATTENTION_CAPTURE]


def _id(identity: Identity, capture: Mapping[str, Any]) -> str:
    return capture_id(identity.source_id, capture)


def newest_seal(location: Location) -> tuple[Manifest | None, list[Problem]]:
    """The newest seal if it is whole, and what is wrong with this seal, older ones and the hint.

    Raises:
        StoreError: a seal is of another format version, or cannot be read.
    """
    found, problems = generations(location), []
    newest = None
    for generation in found:
        name = manifest_name(generation)
        newest = None
        try:
            newest = load_seal(location, generation)
        except CorruptCache as error:
            problems.append(problem_of(location, name, error, expected="a seal"))
        else:
            problem = document_problem(location, "manifest", name)
            problems += [problem] if problem else []
    hinted = hinted_generation(location)
    if hinted is not None and hinted > max(found, default=0):
        expected = "the newest seal, as the hint says"
        name = manifest_name(hinted)
        problems.append(Problem(file=name, expected=expected, found="none: the file is missing"))
    return newest, problems


def check_generated(location: Location) -> tuple[list[Problem], int]:
    """What is wrong with files of responses, and how many there are."""
    problems = []
    files = generated_files(location)
    for name, digest in files.items():
        problem = file_problem(location, name, digest=digest)
        if problem is None:
            try:
                read_table(location.path(name), location.map(name), RESPONSES)
            except StoreError as error:
                problem = problem_of(location, name, error, expected="responses")
        problems += [problem] if problem else []
    return problems, len(files)


def check_samples(
    location: Location, digests: Iterable[str], written: frozenset[str]
) -> tuple[SampleTable | None, list[Problem]]:
    """All samples if every shard of them is whole, and what is wrong with the others."""
    problems, tables = [], []
    for digest in digests:
        name = samples_name(str(digest))
        problem = file_problem(location, name, digest=digest)
        if problem is None:
            try:
                tables.append((samples_table(location, digest), digest in written))
            except StoreError as error:
                problem = problem_of(location, name, error, expected="samples")
        problems += [problem] if problem else []
    return (None if problems else collect(tables)), problems


def check_named(
    location: Location, identity: Identity, manifest: Manifest, known: Collection[str]
) -> tuple[list[Problem], int]:
    """The index of a seal, its digests of the identity, and shards that no good record names.

    Args:
        location: the cache.
        identity: of the cache.
        manifest: the seal.
        known: logits shards of good commit records, which are looked at with these.

    Returns:
        what is wrong, and how many files were looked at beside the identity.
    """
    name = manifest_name(manifest.generation)
    ids = (identity.source_id, identity.capture_id, identity.attention_id)
    sealed = (manifest.source_id, manifest.capture_id, manifest.attention_id)
    problems: list[Problem | None] = []
    if sealed != ids:
        expected = f"a seal of the identity {ids}"
        problems.append(Problem(file=name, expected=expected, found=f"{sealed}"))
    for file in (CACHE, *captures(identity)):
        problems.append(file_problem(location, file, digest=str(manifest.files.get(file))))
    others = {shard_name(d): facts for d, facts in manifest.shards.items() if d not in known}
    beside = {d: f for d, f in manifest.attention.items() if d not in known}
    attention = {attention_name(facts.digest): facts for facts in beside.values()}
    facts: dict[str, ShardFacts | AttentionFacts] = {**others, **attention}
    for file, own in facts.items():
        problems.append(file_problem(location, file, size=own.bytes, digest=own.digest))
    problems.append(_check_index(location, manifest))
    wrong = [problem for problem in problems if problem is not None]
    return wrong, len(others) + len(attention) + 1


def _check_index(location: Location, manifest: Manifest) -> Problem | None:
    name = index_name(manifest.index)
    problem = file_problem(location, name, digest=manifest.index)
    if problem is None:
        try:
            load_index(name, location.read(name))
        except StoreError as error:
            problem = problem_of(location, name, error, expected="an index")
    return problem


def check_indexes(location: Location) -> list[Problem]:
    """Index files, of whichever seal, whose bytes do not have the digest that they are named by."""
    there = location.names("index") if location.lists else []
    digests = (name for name in there if _DIGEST.fullmatch(name))
    found = (file_problem(location, index_name(d), digest=d) for d in digests)
    return [problem for problem in found if problem is not None]


def check_files(location: Location, manifest: Manifest) -> list[Problem]:
    """All files that a seal names against their digests alone: where it is not known what is in."""
    named = dict(manifest.files)
    named |= {shard_name(digest): digest for digest in manifest.shards}
    named |= {attention_name(own.digest): own.digest for own in manifest.attention.values()}
    named |= {samples_name(digest): digest for digest in manifest.samples}
    named |= {prior_name(digest): digest for digest in manifest.priors}
    named[index_name(manifest.index)] = manifest.index
    found = (file_problem(location, name, digest=digest) for name, digest in named.items())
    return [problem for problem in found if problem is not None]


def check_content(
    location: Location, manifest: Manifest, state: CacheState, samples: SampleTable
) -> list[Problem]:
    """Whether a seal, all of whose files are whole, says of them what is so.

    Raises:
        StoreError: a file went away meanwhile.
    """
    name = manifest_name(manifest.generation)
    state, index = without_samples(state, manifest.repaired), state.index()
    content, data = content_of(location, state, captured(samples, index), index)
    document = read_document(location, "manifest", name)
    problems = []
    index_file = index_name(manifest.index)
    if location.read(index_file) != data:
        expected = "an index that points to the rows of the shards"
        problems.append(Problem(file=index_file, expected=expected, found="another"))
    for field in content.keys() - {"index"}:
        # As read back: a tuple is a list in JSON.
        found = document.get(field)
        if field == "kinds" and isinstance(found, dict):
            found = {kind: _known(said, content[field].get(kind)) for kind, said in found.items()}
        elif field == "runs":
            found = _known(found, content[field])
        problems += _compared(name, field, content[field], found)
    return problems


def _known(found: Any, like: Any) -> Any:
    """A value without the fields that its like does not have: those of versions to come."""
    if isinstance(found, dict) and isinstance(like, dict):
        return {key: _known(value, like[key]) for key, value in found.items() if key in like}
    if isinstance(found, list) and isinstance(like, list) and len(found) == len(like):
        return [_known(value, other) for value, other in zip(found, like, strict=True)]
    return found


def _compared(name: str, field: str, expected: Any, found: Any) -> list[Problem]:
    lines = differences(expected, found, field)
    if not lines:
        return []
    what = {"root": "the root digest", "totals": "the totals"}.get(field, f"the field {field}")
    text = "; ".join(lines)
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return [
        Problem(
            file=name,
            expected=f"{what} of the files that the seal names",
            found=f"other values (of the files / of the seal): {shown}",
        )
    ]
