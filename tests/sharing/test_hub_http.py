"""Push to a hub over HTTP and pull from it, by `huggingface_hub` itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer, hub_environment, hub_server
from s3_faults import Fault, FaultProxy, faulty

import cachekd
from cachekd.store.io import Location
from cachekd.store.verify import verify

from .transfers import bytes_of

URL = "hf://datasets/team/news"


def run(proxy: FaultProxy, home: Path, *args: object, **further: str) -> tuple[int, str]:
    """A command in a process whose hub is that behind a proxy; its code, and what it told."""
    code = "from cachekd_cli.main import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **hub_environment(proxy.url, str(home)), **further},
    )
    assert TOKEN not in told.stdout + told.stderr
    return told.returncode, told.stdout + told.stderr


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[HubServer, FaultProxy]]:
    with hub_server() as server, faulty(server.url) as proxy:
        yield server, proxy


@pytest.mark.slow
def test_there_and_back(hub: tuple[HubServer, FaultProxy], shared: Path, tmp_path: Path) -> None:
    server, proxy = hub
    code, told = run(proxy, tmp_path, "push", shared, URL, "--license", "apache-2.0")
    assert code == 0, told
    assert {"make", "batch", "store", "card", "commit"} <= {route for _, route, _ in server.asked}
    names = Location(str(shared)).names("logits")
    digests = {name.partition(".")[0] for name in names if name.endswith(".parquet")}
    assert digests < server.lfs.keys(), "shards are large files, named by the sha256 they have"
    code, told = run(proxy, tmp_path, "pull", URL, tmp_path / "back")
    assert code == 0, told
    there, mine = bytes_of(tmp_path / "back"), bytes_of(shared)
    there.pop("README.md"), mine.pop("README.md")
    assert there == mine
    assert not verify(str(tmp_path / "back")).problems
    server.asked.clear()
    code, told = run(proxy, tmp_path, "push", shared, URL, "--license", "apache-2.0", "--json")
    assert code == 0 and json.loads(told.splitlines()[0])["files_moved"] == 0, told
    assert not {"store", "commit"} & {route for _, route, _ in server.asked}


@pytest.mark.reliability
def test_a_push_that_was_cut_off_goes_on_and_a_pull_beside_it_is_refused(
    hub: tuple[HubServer, FaultProxy], shared: Path, tmp_path: Path
) -> None:
    server, proxy = hub
    proxy.plan.append(Fault("reset", "POST", "validate-yaml", times=None))  # all but the last
    code, told = run(proxy, tmp_path, "push", shared, URL)
    assert code == 1 and "run the same command again" in told
    assert len(server.hub.messages) == 1, "shards are there, and nothing that makes a cache of them"
    code, told = run(proxy, tmp_path, "pull", URL, tmp_path / "back")
    assert code == 1 and "no cache" in told and not (tmp_path / "back").exists()
    proxy.plan.clear()
    server.asked.clear()
    code, told = run(proxy, tmp_path, "push", shared, URL)
    assert code == 0, told
    assert "store" not in {route for _, route, _ in server.asked}, "no shard travels again"
    folder = server.hub.folder("team/news", tmp_path / "there")
    assert cachekd.open_cache(str(folder)).root == cachekd.open_cache(str(shared)).root


@pytest.mark.reliability
def test_a_pull_through_faults(
    hub: tuple[HubServer, FaultProxy], shared: Path, tmp_path: Path
) -> None:
    _, proxy = hub
    assert run(proxy, tmp_path, "push", shared, URL)[0] == 0
    proxy.plan += [
        Fault("cut", "GET", "resolve/main/logits/.*parquet", times=2, at=50),
        Fault("flip", "GET", "resolve/main/logits/.*parquet", times=2),
        Fault("500", "GET", "resolve/main/units"),
        Fault("503", "GET", "tree"),
    ]
    code, told = run(proxy, tmp_path, "pull", URL, tmp_path / "back")
    assert code == 0, told
    assert proxy.faults() == {"cut": 2, "flip": 2, "500": 1, "503": 1}
    assert cachekd.open_cache(str(tmp_path / "back")).root == cachekd.open_cache(str(shared)).root
    assert not verify(str(tmp_path / "back")).problems


@pytest.mark.reliability
def test_without_a_token_it_is_refused(
    hub: tuple[HubServer, FaultProxy], shared: Path, tmp_path: Path
) -> None:
    server, proxy = hub
    code, told = run(proxy, tmp_path, "push", shared, URL, HF_TOKEN="")
    assert code != 0 and "HF_TOKEN" in told
    assert server.hub.repos == {}
