"""A cache of two domains in several shards, made once, and places to share it at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Maker, chat_rows, maker, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.store import retries


@pytest.fixture(scope="session")
def make_cache(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes or continues a cache of the dummy teacher."""
    return maker(family, tmp_path_factory.mktemp("rows"))


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of two domains, six of one after six of the other."""
    return [
        {**row, "domain": "law" if i % 12 < 6 else "code"}
        for i, row in enumerate(chat_rows(count, first), first)
    ]


@pytest.fixture(scope="session")
def shared(make_cache: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples in several shards, sealed. Read only."""
    cache = tmp_path_factory.mktemp("shared") / "cache"
    make_cache(cache, rows_of(12), domain_column="domain", sort_window=1)
    return cache


@pytest.fixture(scope="session")
def attentive(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples with attention, in shards of one. Read only."""
    folder = tmp_path_factory.mktemp("attentive")
    data = write_rows(folder / "data.jsonl", chat_rows(4))
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(data),),
            cache=str(folder / "cache"),
            attention="maps",
            logits_top_k=8,
            threads=1,
            unit_tokens=40,
            batch_tokens=40,
        )
    )
    return folder / "cache"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short, and the local cache is the test's own."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setattr("cachekd.sharing.copier._WAIT_SECONDS", 0.001)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))


@pytest.fixture
def cache(shared: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged or extended."""
    return Path(shutil.copytree(shared, tmp_path / "cache"))
