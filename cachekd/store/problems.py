"""What can be wrong with a cache, said so that a person and a program understand it.

Comes in: a file, what is expected of it, and what is found. Goes out: `Problem`s; nothing raises,
so that all that is wrong is listed and not the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.io import Location
from cachekd.store.layout import as_written, load_document, most_bytes

_ADVICE = ("The file was altered: ", "; the file was altered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: name below the cache.
        expected: what the file should be.
        found: what it is.
        plan, unit: digest of the plan and number of the unit that the file belongs to, if any.
        certain: False where the file is only out of reach: nothing is known of its content.
    """

    file: str
    expected: str
    found: str
    plan: str | None = None
    unit: int | None = None
    certain: bool = True

    def line(self, location: Location) -> str:
        """The problem as a sentence, with the path of the file."""
        of = "" if self.plan is None else f" (unit {self.unit} of plan {self.plan})"
        path = f"{location.url.rstrip('/')}/{self.file}"
        return f"{path}{of}: expected {self.expected}, found {self.found}"

    def to_json(self) -> dict[str, Any]:
        """The problem as plain JSON types."""
        return asdict(self)

    def same(self) -> tuple[object, ...]:
        """What makes it one problem, however many units meet it."""
        return self.file, self.expected, self.found


def problem_of(
    location: Location,
    file: str,
    error: Exception,
    *,
    expected: str = "a file that can be read",
    plan: str | None = None,
    unit: int | None = None,
) -> Problem:
    """The problem that an error tells of; the path and the advice of its message are left out."""
    found = str(error)
    try:
        path = location.path(file)
        if not location.exists(file):
            found = "none: the file is missing"
    except StoreError:  # no name that a cache may hold, or a folder that is none
        path = file
    for part in (f"{path}: ", f"{path} ", f"{file}: ", f"{file} "):
        found = found.removeprefix(part)
    for advice in _ADVICE:
        found = found.split(advice)[0].rstrip(". ")
    certain = isinstance(error, CorruptCache)
    return Problem(file=file, expected=expected, found=found, plan=plan, unit=unit, certain=certain)


def file_problem(
    location: Location,
    file: str,
    *,
    size: int | None = None,
    digest: str | None = None,
    plan: str | None = None,
    unit: int | None = None,
) -> Problem | None:
    """What is wrong with the bytes of a file, if anything; it is read only for a digest."""
    expected = "a file" if size is None else f"{size} bytes"
    try:
        have = location.size(file)
        if size is not None and have != size:
            return Problem(
                file=file, expected=expected, found=f"{have} bytes", plan=plan, unit=unit
            )
        found = bytes_digest(location.map(file)) if digest is not None else None
    except StoreError as error:
        return problem_of(location, file, error, expected=expected, plan=plan, unit=unit)
    if found == digest:
        return None
    return Problem(file=file, expected=f"sha256 {digest}", found=f"{found}", plan=plan, unit=unit)


def document_problem(location: Location, kind: str, file: str) -> Problem | None:
    """What is wrong with a JSON document of the cache, down to its white space, if anything."""
    try:
        data = location.read(file, most_bytes(kind))
        document = load_document(kind, file, data)
    except StoreError as error:
        return problem_of(location, file, error, expected=f"a cachekd-{kind} document")
    return spelling_problem(kind, file, document, data)


def spelling_problem(
    kind: str, file: str, document: Mapping[str, Any], data: bytes
) -> Problem | None:
    """Whether a document that says what it should is spelt otherwise than it was written."""
    again = as_written(kind, document)
    if again == data:
        return None
    return Problem(
        file=file,
        expected=f"sha256 {bytes_digest(again)}, as such a document is written",
        found=f"{bytes_digest(data)}: the same content in other bytes",
    )
