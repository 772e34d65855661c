"""Full disks: an export is whole or not there; an import is no cache until it is done."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from exchanging import brought_in
from tiny import Family, Ran

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.errors import DataError, UnsealedCache
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


@pytest.mark.parametrize("name", ["arrow", "distillkit"])
def test_a_flipped_bit_of_an_export_is_seen(
    name: str, captured: Path, family: Family, tmp_path: Path
) -> None:
    """Of every column: what is imported after all (statistics flipped) is what was exported."""
    export_cache(ExportConfig(cache=str(captured), format=name, out=str(tmp_path / "out")))
    (file,) = (tmp_path / "out").glob("*.parquet")
    whole, group = file.read_bytes(), pq.ParquetFile(file).metadata.row_group(0)
    expected = brought_in(tmp_path / "out", family, tmp_path / "whole", format=name)["root"]
    refused = 0
    for number in range(group.num_columns):
        column = group.column(number)
        first = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(whole)
        damaged[first + column.total_compressed_size * 3 // 4] ^= 4
        file.write_bytes(damaged)
        cache = tmp_path / f"in-{number}"
        try:
            assert brought_in(tmp_path / "out", family, cache, format=name)["root"] == expected
        except DataError as error:
            assert file.name in str(error) and not cache.exists()
            refused += 1
    assert refused > group.num_columns // 2, (refused, group.num_columns)
