"""Secrets that are planted around a run stand in nothing that it writes or prints."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import TRAINING
from tiny import Family, Ran, chat_rows, write_rows

from cachekd.store.io import Location
from cachekd.store.names import shown

WORD = "canary7f3a"
VARIABLES = [
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "OPENAI_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "AZURE_STORAGE_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS", "CACHEKD_SERVE_TOKEN", "DATABASE_URL", "HTTP_PROXY_PASSWORD",
]  # fmt: skip
URLS = [
    f"https://user:{WORD}@host.invalid/cache",
    f"https://{WORD}@host.invalid/cache",
    f"https://host.invalid/cache?X-Amz-Signature={WORD}",
    f"https://host.invalid/cache?sig={WORD}&se=2026",
    f"s3://key:{WORD}@bucket/cache",
    f"gs://bucket/cache?token={WORD}",
    f"nowhere://user:{WORD}@host/cache",
    f"simplecache::s3://key:{WORD}@bucket/cache?versionId={WORD}",
]


def texts_of(folder: Path) -> dict[str, bytes]:
    """All files below, and the text of the tables."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                found[f"{path} as text"] = str([table.to_pylist(), table.schema.metadata]).encode()
            if path.suffix == ".gz":
                found[f"{path} unpacked"] = gzip.decompress(found[str(path)])
    return found


def test_a_run_writes_no_secret(
    family: Family,
    tmp_path: Path,
    cachekd: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of the environment, of flags, and of the folders that a user's files are in."""
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{WORD}-{name}")
    home = tmp_path / f"home-{WORD}"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("teacher", "student"):
        (home / name).symlink_to(getattr(family, name))
    data = write_rows(home / "data.jsonl", chat_rows(4))
    cache, out = tmp_path / "cache", tmp_path / "out"
    caplog.set_level(logging.INFO)
    flags = ["--teacher", home / "teacher", "--data", data, "--backend", "dummy", "--threads", 1]
    made = cachekd("precompute", *flags, "--cache", cache, "--json")
    assert made.code == 0, made.err
    config = tmp_path / "config.yaml"
    settings = {**TRAINING, "max_steps": 1, "push_to_hub": False, "hub_token": f"{WORD}-hub"}
    config.write_text(json.dumps({"training": settings}))
    trained = cachekd(
        "train", "--config", config, "--cache", cache, "--student", home / "student",
        "--objective", "kd", "--output-dir", out, "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    told = {"precompute": made.out + made.err, "log": caplog.text}
    told |= {"inspect": cachekd("inspect", cache).out, "verify": cachekd("verify", cache).out}
    found = {**{name: text.encode() for name, text in told.items()}, **texts_of(cache)}
    assert len(found) > 12
    assert [name for name, text in found.items() if WORD.encode() in text] == []
    # What trained may name its own settings: folders as the user gave them, but no secret.
    own = {**texts_of(out), "train": (trained.out + trained.err).encode()}
    assert any(name.endswith("run.json") for name in own)
    secrets = [f"{WORD}-{name}" for name in (*VARIABLES, "hub")]
    leaks = [(n, s) for n, text in own.items() for s in secrets if s.encode() in text]
    assert leaks == []


@pytest.mark.parametrize("url", URLS)
def test_urls_are_told_without_what_signs_them(
    cachekd: Callable[..., Ran], caplog: pytest.LogCaptureFixture, url: str
) -> None:
    caplog.set_level(logging.DEBUG)
    assert WORD not in shown(url) and shown(url).partition("://")[0] == url.partition("://")[0]
    if url.startswith("nowhere"):  # no such filesystem: nothing is asked
        ran = cachekd("inspect", url)
        assert ran.code != 0 and "nowhere://" in ran.err
        assert WORD not in ran.err + ran.out + caplog.text


def test_a_location_in_memory_hides_what_signs_it(cachekd: Callable[..., Ran]) -> None:
    location = Location(f"memory://user:{WORD}@place/cache")
    assert location.url == "memory://...@place/cache" and WORD in location.target
    assert shown("/a/folder?x#y@z") == "/a/folder?x#y@z", "a path is no URL"


def test_twenty_secrets_are_planted() -> None:
    assert len(VARIABLES) + len(URLS) + 1 >= 20


@pytest.mark.parametrize(
    "url", [f"http://user:{WORD}@127.0.0.1:9", f"http://127.0.0.1:9/?token={WORD}"]
)
def test_a_live_teacher_is_told_without_its_secret(
    family: Family, data: Path, tmp_path: Path, cachekd: Callable[..., Ran], url: str
) -> None:
    ran = cachekd(
        "train", "--data", data, "--student", family.student, "--objective", "gkd",
        "--teacher-url", url, "--teacher-token", f"{WORD}-flag", "--output-dir", tmp_path / "out",
        "--teacher-patience", 1,
    )  # fmt: skip
    assert ran.code == 2 and WORD not in ran.err + ran.out
    assert not (tmp_path / "out").exists()
