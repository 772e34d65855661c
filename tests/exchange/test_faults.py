"""Full disks: an export is whole or not there; an import is no cache until it is done."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import Family, Ran

from cachekd import open_cache
from cachekd.errors import UnsealedCache
from cachekd.store.verify import verify

Run = Callable[..., Ran]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within: the system refuses to let any file grow beyond this, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["arrow", "axolotl", "distillkit"])
def test_an_export_that_does_not_fit(
    name: str, captured: Path, cachekd: Run, tmp_path: Path
) -> None:
    """The table does not fit, or only what follows it; then the same command makes it."""
    flags = ("export", captured, "--format", name, "--out", tmp_path / "out")
    for size in (100, 5000):
        with files_of_at_most(size):
            refused = cachekd(*flags)
        assert refused.code == 1 and "Nothing is left of it" in refused.err, refused.err
        assert "Traceback" not in refused.err and not any(tmp_path.iterdir())
    assert cachekd(*flags).code == 0 and (tmp_path / "out" / "README.md").exists()


def test_an_import_that_does_not_fit(
    captured: Path, family: Family, cachekd: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cachekd("export", captured, "--format", "arrow", "--out", out).code == 0
    flags = ("import", out, "--format", "arrow", "--teacher", "t", "--codec", "plain")
    flags += ("--tokenizer", family.teacher, "--unit-tokens", 60, "--json")
    whole = cachekd(*flags, "--cache", tmp_path / "whole").json
    sizes = sorted(
        path.stat().st_size for path in (tmp_path / "whole").rglob("*.*") if path.is_file()
    )
    cache = tmp_path / "in"
    for size in (sizes[0] - 1, sizes[len(sizes) // 2], sizes[-1] - 1):
        with files_of_at_most(size):
            refused = cachekd(*flags, "--cache", cache)
        assert refused.code == 1 and "File too large" in refused.err, refused.err
        assert "Traceback" not in refused.err
        if (cache / "cache.json").exists():
            with pytest.raises(UnsealedCache):
                open_cache(str(cache))
    done = cachekd(*flags, "--cache", cache).json
    assert done["samples"] == whole["samples"] and not verify(str(cache)).findings
    expected = open_cache(str(tmp_path / "whole"))
    for record in open_cache(str(cache)):
        other = expected.get(record.input_ids).logits
        assert (record.logits.logprobs == other.logprobs).all()
