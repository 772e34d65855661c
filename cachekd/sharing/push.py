"""Push: a sealed cache to a place where others find it.

Comes in: a `PushConfig`. Goes out: the cache at its location, its line in the catalogue beside it,
and a report of what travelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachekd.config import PushConfig
from cachekd.sharing.catalogue import enter
from cachekd.sharing.content import Content, sealed_content
from cachekd.sharing.copier import Step, listings
from cachekd.sharing.derive import CHANGED, derived, refuse_kept
from cachekd.sharing.transfer import refuse_other, transfer
from cachekd.store.io import Location
from cachekd.store.retries import counted, since
from cachekd.store.settings import using


def push(config: PushConfig, *, step: Step | None = None) -> dict[str, Any]:
    """Send what a location lacks of a cache; the seal last, so that readers see all or nothing.

    Args:
        config: see `PushConfig`.
        step: called with bytes done and in all.

    Returns:
        a report of plain JSON types.

    Raises:
        UnsealedCache: the cache is not finished.
        MismatchError: the location holds a cache of another identity; names each field that
            differs; or one of the two is without text.
        ConfigError: it holds what is to be left out.
        CorruptCache: a file of the cache is altered; names it.
        StoreError: a file cannot be read or written.
        Incomplete: stopped by a signal; the same call continues.
    """
    before = counted()
    with using(config):
        report = _push(config, step)
    retried = report.get("retried", 0) + since(before).get("retries", 0)
    return {**report, "retried": retried}


def _push(config: PushConfig, step: Step | None) -> dict[str, Any]:
    source = Location(config.cache)
    if config.repo is not None:
        from cachekd.sharing.hub import push_to_hub

        with _travelling(config, sealed_content(source)) as content:
            return {"from": source.url, **push_to_hub(config, content, step=step)}
    into = Location(config.location)
    whole = sealed_content(source)
    if config.changes:
        refuse_other("push", whole, into)  # before a changed copy is made
    with _travelling(config, whole) as content:
        if config.changes:
            refuse_kept(into.url, listings(into, CHANGED), content)
        done = transfer("push", content, into, jobs=config.jobs, dry_run=config.dry_run, step=step)
        report = {"cache": source.url, "to": into.url, **done.report()}
        if done.manifest is not None:
            mine, there = content.manifest, done.manifest
            same = (mine.root, mine.index) == (there.root, there.index)
            near = content.location if same else None
            report["catalogue"] = enter(into, whole.identity, there, near)
    return report


@contextmanager
def _travelling(config: PushConfig, content: Content) -> Iterator[Content]:
    """Within: what travels, which is a changed copy where that was asked for."""
    if not config.changes:
        yield content
        return
    with derived(config, content) as changed:
        yield changed
