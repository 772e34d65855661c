"""Small caches of the dummy teacher, made once a session; a test that changes one copies it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import Family, Maker, chat_rows, maker


@pytest.fixture(scope="session")
def make_cache(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes or continues a cache: ``make_cache(url, rows, **settings)`` gives the report."""
    return maker(family, tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def sealed(make_cache: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples in several shards, sealed. Read only."""
    cache = tmp_path_factory.mktemp("sealed") / "cache"
    rows = [{**row, "domain": f"d{i % 2}"} for i, row in enumerate(chat_rows(9))]
    make_cache(cache, [*rows, rows[0]], domain_column="domain")
    return cache


@pytest.fixture
def cache(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the sealed cache, to be damaged or extended."""
    return Path(shutil.copytree(sealed, tmp_path / "cache"))
