"""An object of S3 from pieces: a single put, or an upload in parts that is not seen before its end.

Comes in: pieces, and what tries an operation on the object again. Goes out: the object, whole or
not at all. Each part is tried again alone. A process that is killed leaves its parts with the
bucket, unseen, until a rule of the bucket's takes them away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from cachekd.errors import StoreError

Tried = Callable[[Callable[[Any, str], Any]], Any]  # of a call with a filesystem and a path
_NEW = {"IfNoneMatch": "*"}
_log = logging.getLogger(__name__)


def put(tried: Tried, pieces: Iterable[bytes], *, over: bool) -> None:
    """Make an object of pieces, each of at most 5 GiB and all but the last of at least 5 MiB.

    Args:
        tried: does something with the object, again where that may help.
        pieces: its bytes; an error of theirs leaves no object.
        over: whether it may take the place of another.

    Raises:
        FileExistsError: there is one; also where an earlier try made it and the answer was lost.
    """
    coming = iter(pieces)
    held = [next(coming, b"")]
    held += islice(coming, 1)
    if len(held) < 2:
        mode = "overwrite" if over else "create"
        tried(lambda fs, path: fs.pipe_file(path, held[0], mode=mode))
        return
    upload = _Upload(tried)
    try:
        while held:
            upload.send(held.pop(0))
            held += islice(coming, 0 if held else 1)
        upload.end({} if over else _NEW)
    except BaseException:
        upload.give_up()
        raise


class _Upload:
    """An upload in parts that has begun."""

    def __init__(self, tried: Tried) -> None:
        self._tried = tried
        self._parts: list[dict[str, Any]] = []
        self._id = self._asked("create_multipart_upload")["UploadId"]

    def send(self, piece: bytes) -> None:
        """Send the next part."""
        number = len(self._parts) + 1
        told = self._asked("upload_part", UploadId=self._id, PartNumber=number, Body=piece)
        self._parts.append({"PartNumber": number, "ETag": told["ETag"]})

    def end(self, condition: dict[str, str]) -> None:
        """Make the object of the parts."""
        parts = {"Parts": self._parts}
        try:
            self._asked(
                "complete_multipart_upload", UploadId=self._id, MultipartUpload=parts, **condition
            )
        except FileNotFoundError as error:  # it has ended: by an earlier try, most likely
            raise FileExistsError("the upload has ended") from error

    def give_up(self) -> None:
        """Let the parts go; one that cannot be reached leaves them."""
        try:
            self._asked("abort_multipart_upload", UploadId=self._id)
        except (StoreError, FileNotFoundError) as error:
            _log.info("an upload in parts was left: %s", error)

    def _asked(self, what: str, **further: Any) -> Any:
        def ask(fs: Any, path: str) -> Any:
            bucket, key, _ = fs.split_path(path)
            return fs.call_s3(what, Bucket=bucket, Key=key, **further)

        return self._tried(ask)
