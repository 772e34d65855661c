"""Push and pull from Python, and what lies at a place."""

from __future__ import annotations

from typing import Any

from cachekd.config import PullConfig, PushConfig
from cachekd.sharing.pull import pull
from cachekd.sharing.push import push
from cachekd.store.io import Location

HEAD = ("format", "version", "checksum")  # what every document has beside its own fields


def bytes_of(url: object) -> dict[str, bytes]:
    """Every file of a cache but what a push makes for itself."""
    place = Location(str(url))
    folders = ["", "plans", "units", "samples", "logits", "attention", "priors", "index"]
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in place.names(folder)]
    return {name: bytes(place.read(name)) for name in names}


def send(cache: object, location: object, **further: Any) -> dict[str, Any]:
    return push(PushConfig(cache=str(cache), location=str(location), **further))


def fetch(location: object, cache: object, **further: Any) -> dict[str, Any]:
    return pull(PullConfig(location=str(location), cache=str(cache), **further))
