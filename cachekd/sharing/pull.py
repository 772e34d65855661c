"""Pull: a shared cache, or a part of it, to a folder of one's own.

Comes in: a `PullConfig`. Goes out: a sealed cache, and a report of what came.
"""

from __future__ import annotations

from typing import Any

from cachekd.config import PullConfig
from cachekd.data.packed import Keys
from cachekd.sharing.choose import choose
from cachekd.sharing.content import part_of, sealed_content
from cachekd.sharing.copier import Copier, Step
from cachekd.sharing.transfer import transfer
from cachekd.store.io import Location
from cachekd.store.retries import counted, since
from cachekd.store.settings import using


def pull(
    config: PullConfig, *, keys: Keys | None = None, step: Step | None = None
) -> dict[str, Any]:
    """Fetch what a folder lacks of a shared cache, and seal it.

    Args:
        config: see `PullConfig`; its ``keys_from`` is given as ``keys``.
        keys: only shards that hold a record of these keys come.
        step: called with bytes done and in all.

    Returns:
        a report of plain JSON types.

    Raises:
        CacheNotFound, UnsealedCache: there is nothing to pull.
        MismatchError: the folder holds a cache of another identity, and each field that differs is
            named; or one of the two is without text.
        DataError: no shard holds what was asked for.
        CorruptCache: a file at the source is altered; names it.
        StoreError: a file cannot be read or written.
    """
    before = counted()
    with using(config):
        report = _pull(config, keys, step)
    retried = report.get("retried", 0) + since(before).get("retries", 0)
    return {**report, "retried": retried}


def _pull(config: PullConfig, keys: Keys | None, step: Step | None) -> dict[str, Any]:
    source, into = Location(config.location), Location(config.cache)
    content, told = sealed_content(source), {}
    if keys is not None or config.domain or config.fraction < 1:
        choice = choose(
            content, keys=keys, domains=config.domain, fraction=config.fraction, seed=config.seed
        )
        told = {name: value for name, value in choice.told.items() if name != "of"}
        told["shards_of"] = choice.told["of"]
        copier = Copier(source, into, config.jobs)
        content = part_of(content, choice.shards, choice.told, copier.read_all)
    done = transfer("pull", content, into, jobs=config.jobs, dry_run=config.dry_run, step=step)
    whole = content.manifest.totals.get("bytes", 0)
    return {
        "cache": into.url,
        "from": source.url,
        "origin": content.manifest.root,
        "bytes_of_shards_at_origin": whole,
        **told,
        **done.report(),
    }
