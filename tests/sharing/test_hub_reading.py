"""Reading from the hub: a cache that was pushed there is opened, trained from and verified."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import FakeHub
from hub_server import TOKEN, HubServer, hub_server
from runs import train
from s3_faults import Fault, faulty
from tiny import Family

import cachekd
from cachekd.errors import CacheNotFound, CorruptCache, StoreError
from cachekd.store import retries

from .transfers import send

URL = "hf://datasets/team/news"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short, and the local cache is the test's own."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setattr(retries, "TOTAL_SECONDS", 2.0)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, shared: Path) -> FakeHub:
    """A hub to which the cache was pushed."""
    fake = FakeHub()
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi", fake.api)
        send(shared, URL)
    return fake


@pytest.fixture
def server(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(hub, token=None) as server:
        monkeypatch.setenv("CACHEKD_STORAGE_OPTIONS", f"endpoint={server.url}")
        yield server


def test_records_are_those_of_the_folder(server: HubServer, shared: Path) -> None:
    there, here = cachekd.open_cache(URL), cachekd.open_cache(str(shared))
    assert there.root == here.root and len(there) == len(here) == 12
    opened = len(server.asked)
    for one, two in zip(there, here, strict=True):
        assert one.key == two.key
        assert one.logits.logprobs.tobytes() == two.logits.logprobs.tobytes()
    files = [path for _, route, path in server.asked if route == "resolve" and ".parquet" in path]
    assert files and len({*files}) == len(files), "each is fetched once"
    listed = sum("/tree/main/logits" in path for _, _, path in server.asked[opened:])
    shards = [path for path in files if "/logits/" in path]
    assert listed <= 2 < len(shards), "and not looked for each"
    server.asked.clear()
    assert [one.key for one in cachekd.open_cache(URL)] == [one.key for one in here]
    assert not [path for _, _, path in server.asked if ".parquet" in path], "held here"


@pytest.mark.slow
def test_a_student_is_trained_from_it(server: HubServer, family: Family, tmp_path: Path) -> None:
    train(family, (URL,), tmp_path / "out", objective="kd")  # type: ignore[arg-type]
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_command_line_goes_where_the_environment_says(server: HubServer) -> None:
    code = "from cachekd_cli.main import main; main()"
    environment = {**os.environ, "HF_ENDPOINT": server.url, "CACHEKD_STORAGE_OPTIONS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", URL],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0 and "12" in done.stdout, done.stderr


@pytest.mark.reliability
@pytest.mark.parametrize("kind", ["503", "429", "cut", "short", "flip", "plain"])
def test_what_a_network_does_is_tried_again(
    server: HubServer, shared: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    with faulty(server.url) as proxy:
        monkeypatch.setenv("CACHEKD_STORAGE_OPTIONS", f"endpoint={proxy.url}")
        proxy.plan[:] = [Fault(kind, "GET", "/resolve/.*parquet", times=2, at=100)]
        keys = [one.key for one in cachekd.open_cache(URL)]
        assert proxy.faults() == {kind: 2}
    assert keys == [one.key for one in cachekd.open_cache(str(shared))]


def test_altered_and_missing_files_are_named(server: HubServer, hub: FakeHub) -> None:
    files = hub.repos["team/news"][-1]
    shard = next(name for name in files if name.startswith("logits/") and "parquet" in name)
    files[shard] = bytes([files[shard][0] ^ 1]) + files[shard][1:]
    with pytest.raises(CorruptCache, match=shard):
        _ = [*cachekd.open_cache(URL)]
    del files[shard]
    with pytest.raises(CorruptCache, match=f"{shard} is missing"):
        _ = [*cachekd.open_cache(URL)]


def test_a_private_repo_wants_its_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server(hub, TOKEN) as server:
        options = {"endpoint": server.url}
        assert len(cachekd.open_cache(URL, storage_options={**options, "token": TOKEN})) == 12
        with pytest.raises(StoreError, match="team/news") as caught:
            cachekd.open_cache(URL, storage_options={**options, "token": TOKEN[:-1]})
        assert TOKEN[:-1] not in str(caught.value)


def test_no_such_repo(server: HubServer) -> None:
    with pytest.raises(CacheNotFound, match="hf://datasets/team/other"):
        cachekd.open_cache("hf://datasets/team/other")
