"""A file on its way in pieces: its digest is taken as they go by, so that none is held whole.

Comes in: where the pieces of a file are read, and the sha256 that names it. Goes out: the pieces,
and at their end an error where they are other bytes. Writers give a file its name only after the
last piece, so that bytes without their digest are never seen under it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from cachekd.errors import CorruptCache

PIECE_BYTES = 8 << 20  # S3 takes parts of 5 MiB to 5 GiB, at most 10 000 of them


class Altered(CorruptCache):
    """Bytes that do not have their digest: on their way, or where they lie."""


class Checked:
    """The pieces of a file that is named by its digest; each call reads it anew.

    Args:
        path: what messages call the file.
        digest: its sha256.
        read: gives its pieces, all but the last of one size.
        summed: whether checksums are wanted.

    Attributes:
        digest: as given.
        size: bytes that went by.
        etag: what S3 calls a file of these pieces, each of which was a part: the MD5 of a single
            one, or that of their MD5s and how many they are. Empty unless checksums are wanted.
    """

    def __init__(
        self, path: str, digest: str, read: Callable[[], Iterable[bytes]], *, summed: bool = False
    ) -> None:
        self.digest = digest
        self._path, self._read, self._summed = path, read, summed
        self.size, self.etag = 0, ""

    def __call__(self) -> Iterator[bytes]:
        """The pieces.

        Raises:
            Altered: after the last: they are not the bytes of this digest.
        """
        whole, sums, self.size = hashlib.sha256(), [], 0
        for piece in self._read():
            whole.update(piece)
            if self._summed:
                sums.append(hashlib.md5(piece, usedforsecurity=False))
            self.size += len(piece)
            yield piece
        if whole.hexdigest() != self.digest:
            raise Altered(
                f"{self._path}: its bytes do not have the digest {self.digest} that names them. "
                "Nothing of it was copied: verify that cache, and repair it first"
            )
        self.etag = _etag([one.digest() for one in sums])


def digest_of(pieces: Iterable[bytes]) -> str:
    """sha256 of a file in pieces, as hex."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _etag(sums: list[bytes]) -> str:
    if len(sums) < 2:
        return "".join(one.hex() for one in sums)
    joined = hashlib.md5(b"".join(sums), usedforsecurity=False).hexdigest()
    return f"{joined}-{len(sums)}"
