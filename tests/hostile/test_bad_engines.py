"""Engines and ranks that cannot be: each is refused with what to do, and nothing is written."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran

from cachekd import PrecomputeConfig
from cachekd.engines import _cluster
from cachekd.engines._ranks import share_of
from cachekd.errors import ConfigError, WorkerError

Run = Callable[..., Ran]


def config(**further: Any) -> PrecomputeConfig:
    return PrecomputeConfig(**{"teacher": "t", "data": ("d",), "cache": "c", **further})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK and WORLD_SIZE: .* found rank 4 of 4"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "found rank -1 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "found rank 0 of 0"),
        ({"RANK": "first", "WORLD_SIZE": "4"}, "RANK: expected a whole number.*found 'first'"),
        ({"WORLD_SIZE": "4"}, "variable RANK: expected a whole number.*it is not set"),
        ({"RANK": "1"}, "variable WORLD_SIZE: .*it is not set"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_MIN: .*it is not set"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_COUNT": "2",
            },
            "evenly spaced array ids .2 from 3 on.*--rank and --world-size",
        ),
    ],
)
def test_variables_that_do_not_fit_together(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        share_of(config(), environment)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank 0 with world_size None: give both"),
        ({"world_size": 2}, "rank None with world_size 2: give both"),
        ({"rank": 2, "world_size": 2}, "found rank 2 of 2"),
        ({"ray_actors": 2}, "ray_actors: it belongs to engine ray"),
        ({"engine": "ray", "ray_actors": 0}, "ray_actors: expected 1 or more; found 0"),
        ({"engine": "ray", "ray_retries": -1}, "ray_retries: expected 0 or more; found -1"),
        ({"engine": "ray", "ray_gpus_per_actor": -0.5}, "ray_gpus_per_actor: expected 0 or more"),
        ({"engine": "ray", "rank": 0, "world_size": 2}, "leave out rank, world_size"),
        ({"engine": "ray", "tp_plan": "auto"}, "leave out rank, world_size and tp_plan"),
        ({"tp_plan": "auto", "device_map": "auto"}, "leave out device, device_map"),
        ({"tp_plan": "auto", "attention": "maps"}, "leave out attention"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def arguments(family: Family, data: Path, tmp_path: Path) -> list[object]:
    return ["precompute", "--teacher", family.teacher, "--data", data, "--cache", tmp_path / "c"]


def test_an_engine_that_nobody_knows(
    family: Family, data: Path, tmp_path: Path, cachekd: Run
) -> None:
    ran = cachekd(*arguments(family, data, tmp_path), "--engine", "rya")
    assert ran.code == 2 and "Did you mean 'ray'? Available: local, ray" in ran.err
    assert not (tmp_path / "c").exists()


def test_a_rank_of_the_environment_is_checked_before_the_data(
    family: Family, tmp_path: Path, cachekd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = cachekd(*arguments(family, tmp_path / "none.jsonl", tmp_path))
    assert ran.code == 2 and "found rank 3 of 2" in ran.err


def test_ray_that_is_not_installed(
    family: Family, data: Path, tmp_path: Path, cachekd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = cachekd(*arguments(family, data, tmp_path), "--engine", "ray")
    assert ran.code == 2 and "pip install 'cachekd[ray]'" in ran.err


@pytest.fixture
def some_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before Ray is asked for anything."""
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))


@pytest.mark.usefixtures("some_ray")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": object()}, "as a folder or a hub id.*found a object"),
        ({"backend": "__main__:Mine"}, "actors cannot import __main__:Mine"),
        ({"cache": "memory://c"}, "actors do not see memory://c"),
        ({"generate": "greedy"}, "--generate with --engine local"),
    ],
)
def test_what_actors_cannot_have(settings: dict[str, Any], message: str) -> None:
    from cachekd.engines.ray import RayEngine

    with pytest.raises(ConfigError, match=message):
        RayEngine(config(engine="ray", **settings))


def test_a_cluster_that_is_not_there_is_known_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(WorkerError, match=rf"answers at 127.0.0.1:{port}: .*refused"):
        _cluster._reach(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 60, "Ray alone would try for longer"


@pytest.mark.parametrize("address", ["here", "host:", ":6379", "host:port"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="ray_address: expected HOST:PORT"):
        _cluster._reach(address)


def test_ranks_with_other_settings_on_one_cache(
    family: Family, data: Path, tmp_path: Path, cachekd: Run
) -> None:
    shared = [*arguments(family, data, tmp_path), "--backend", "dummy", "--world-size", 2]
    assert cachekd(*shared, "--rank", 0).code == 0
    other = cachekd(*shared, "--rank", 1, "--logits-top-k", 7)
    assert other.code == 5 and "capture.selection.k: 64 / 7" in other.err
