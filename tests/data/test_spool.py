"""What is put on a spool comes back; a full disk is told with what to do."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.data import spool
from cachekd.data.digests import bytes_digest
from cachekd.data.spool import Spool, SpooledFiles, SpooledSamples
from cachekd.errors import StoreError
from cachekd.types import Role, Sample

samples = st.builds(
    lambda roles, prompt, domain, weight, row: Sample(
        input_ids=np.arange(len(roles), dtype=np.int32) + row,
        roles=np.array(roles, np.uint8),
        prompt_length=prompt,
        domain=domain,
        weight=weight,
        source=f"{domain}.jsonl",
        row=row,
    ),
    st.lists(st.sampled_from(list(Role)), min_size=2, max_size=9),
    st.none() | st.integers(0, 2),
    st.sampled_from(["", "a", "ö"]),
    st.floats(0, 9),
    st.integers(0, 1 << 20),
)


@given(st.lists(samples, max_size=8))
def test_samples_come_back_by_place(given_samples: list[Sample]) -> None:
    spooled = SpooledSamples()
    for sample in given_samples:
        spooled.append(sample)
        assert np.array_equal(spooled[-1].input_ids, sample.input_ids), "read between appends"
    assert spooled.lengths().tolist() == [len(sample.roles) for sample in given_samples]
    for found, sample in zip(spooled, given_samples, strict=True):
        for name in Sample.__slots__:
            mine, theirs = getattr(found, name), getattr(sample, name)
            assert (
                np.array_equal(mine, theirs) if name in ("input_ids", "roles") else mine == theirs
            )
        assert found.input_ids.dtype == np.int32 and found.roles.dtype == np.uint8
        assert found.input_ids.flags.writeable, "torch warns of arrays that cannot be written"
    assert [one.row for one in spooled[1:3]] == [one.row for one in given_samples[1:3]]
    with pytest.raises(IndexError, match=f"there are {len(given_samples)} samples"):
        spooled[len(given_samples)]


def test_files_come_back_by_digest() -> None:
    files, contents = SpooledFiles(), [b"abc", b"", b"x" * 3_000_000]
    for content in contents:
        files.add(content)
    assert list(files) == [bytes_digest(content) for content in contents]
    assert [bytes(found) for found in files.values()] == contents


def test_what_waits_on_disk_leaves_no_file_behind(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path))
    held = Spool()
    held.append(b"x" * 2_000_000)
    assert held.read(1_999_999, 1) == b"x" and os.listdir(tmp_path) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    held = Spool()
    monkeypatch.setattr(held, "_file", Full())
    held.append(b"x")
    with pytest.raises(StoreError, match=r"No space left.*set TMPDIR"):
        held.read(0, 1)


def test_what_is_small_needs_no_disk_and_what_is_large_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", none)
    held, small = Spool(), np.arange(1000)
    held.append(small.data)
    assert spool.spilled(small) is small and held.mapped(small.dtype).tolist() == small.tolist()
    assert held.read(8, 8) == small[1:2].tobytes()
    with pytest.raises(StoreError, match=r"No usable temporary directory.*set TMPDIR"):
        spool.spilled(np.zeros(1 << 20))
    with pytest.raises(StoreError, match=r"No usable temporary directory.*set TMPDIR"):
        held.append(bytes(1 << 20))
