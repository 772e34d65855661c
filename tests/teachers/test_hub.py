"""A teacher by hub id, read from a hub cache that lies on this machine already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import Family

import cachekd
from cachekd import PrecomputeConfig
from cachekd.data import digests
from cachekd.data.digests import file_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub cache as huggingface_hub lays it out: weights are links to blobs named by sha256."""
    import huggingface_hub.constants as constants

    home = tmp_path / "hub"
    repo = home / "models--org--teacher"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    shutil.copytree(family.teacher, snapshot)
    blobs.mkdir()
    weights = snapshot / "model.safetensors"
    blob = blobs / file_digest(weights)
    weights.rename(blob)
    weights.symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "org/teacher"


def test_a_hub_teacher_is_the_same_source_as_its_folder(
    family: Family, hub: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(teacher: str, cache: Path) -> cachekd.Cache:
        config = PrecomputeConfig(teacher=teacher, data=(str(data),), cache=str(cache))
        cachekd.precompute(config)
        return cachekd.open_cache(str(cache))

    local = capture(str(family.teacher), tmp_path / "local")
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *a: pytest.fail("weights were read"))
    remote = capture(hub, tmp_path / "remote")
    assert remote.identity.source_id == local.identity.source_id
    assert remote.root == local.root
    assert remote.identity.provenance["teacher"] == "org/teacher"
    assert local.identity.provenance["teacher"] == "teacher", "a folder's path is not recorded"
