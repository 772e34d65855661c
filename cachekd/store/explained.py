"""What a user is told of an error of a remote filesystem: its cause and what to do, no secret.

Comes in: an error that stays, and the options of the filesystem. Goes out: text. No option's value
is in it, nothing that signs a URL, and no name or password that a URL carries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cachekd.store.retries import chain, code_of, status_of
from cachekd.store.settings import texts_of

_REFUSED = (401, 403)
_ONLY_A_PLACE = re.compile(r"'?[a-z0-9+]+://\S*")
_CREDENTIALS = (
    "Check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile of ~/.aws, "
    "HF_TOKEN, or --storage-options), and what they may do here"
)


def told_of(place: str, error: Exception, options: Mapping[str, Any]) -> str:
    """What a user is told of an error that stays.

    Args:
        place: what was asked for, as messages name it.
        error: the last one, with the number of tries as a note.
        options: of the filesystem.
    """
    tries = "".join(f" ({note})" for note in getattr(error, "__notes__", [])[-1:])
    why, advice = explained(error)
    return f"{place.rstrip('/')}: {clean(why, options)}{tries}. {advice}"


def clean(text: str, options: Mapping[str, Any]) -> str:
    """A text without what is secret."""
    for secret in texts_of(options):
        text = text.replace(secret, "...")
    text = re.sub(r"://[^/\s'\"]*@", "://...@", text)
    return re.sub(r"\?[^\s'\"]*", "?...", text)


def explained(error: Exception) -> tuple[str, str]:
    """Why something cannot be done, and what to do."""
    name, code, status = type(error).__name__, code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return "there is no such bucket", "Check the name, or make the bucket first"
    if isinstance(error, TypeError) and "keyword argument" in f"{error}":
        return f"an option is not known there: {error}", "Check the names in --storage-options"
    denied = isinstance(error, PermissionError) or name.endswith("CredentialsError")
    if denied or status in _REFUSED:
        return f"access is refused: {_cause(error)}", _CREDENTIALS
    if name == "OfflineModeIsEnabled":
        return (
            "the hub is switched off (HF_HUB_OFFLINE)",
            "Unset HF_HUB_OFFLINE, or give a local copy of the cache",
        )
    about = _cause(error)
    if status is not None:
        about = f"the server answered {status}: {about}"
    return about, "Try again later; what was committed before is whole"


def _cause(error: Exception) -> str:
    """The text of an error, or of what it came from where it only names a place."""
    texts = [f"{one}" for one in chain(error)]
    known = (text for text in texts if text and not _ONLY_A_PLACE.fullmatch(text))
    return next(known, type(error).__name__)
