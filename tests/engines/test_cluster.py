"""Addresses of Ray clusters, looked at before any is connected to, and how many actors fit."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from cachekd import PrecomputeConfig
from cachekd.engines import _cluster
from cachekd.engines._cluster import connected, room
from cachekd.errors import ConfigError, WorkerError


def config(**further: Any) -> PrecomputeConfig:
    return PrecomputeConfig(teacher="t", data=("d",), cache="c", engine="ray", **further)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that a made-up Ray was asked to connect to."""
    found: list[Any] = []
    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda address, **_: found.append(address),
        shutdown=lambda: None,
    )
    monkeypatch.setattr(_cluster, "ray_module", lambda: fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port"])
@pytest.mark.parametrize("given", [True, False])
def test_an_address_that_is_none_of_a_clusters_head_is_refused(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, address: str, given: bool
) -> None:
    """Ray's client is not used; RAY_ADDRESS may name it for the user's own scripts."""
    if not given:
        monkeypatch.setenv("RAY_ADDRESS", address)
    name = "ray_address" if given else "RAY_ADDRESS"
    settings = config(ray_address=address) if given else config()
    with (
        pytest.raises(ConfigError, match=rf"{name}: expected HOST:PORT.*found '{address}'"),
        connected(settings),
    ):
        pass
    assert not asked


def test_an_address_where_nobody_listens_is_refused(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    for settings in (config(), config(ray_address=address), config(ray_address="auto")):
        with pytest.raises(WorkerError, match=f"no Ray cluster answers at {address}"):  # noqa: SIM117
            with connected(settings):
                pass
    assert not asked
    with connected(config(ray_address="local")):
        assert asked == ["local"]


def nodes(*resources: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": one} for one in resources])


@pytest.mark.parametrize(
    ("found", "further", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 3.0}], {}, (2, 0.0, 5)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 3.0}], {}, (1, 1.0, 4)),
        ([{"CPU": 8.0, "GPU": 4.0}], {"ray_gpus_per_actor": 0.5}, (1, 0.5, 8)),
        ([{"CPU": 8.0, "GPU": 4.0}], {"ray_gpus_per_actor": 0.0}, (2, 0.0, 4)),
        ([{"CPU": 1.0}], {}, (1, 0.0, 1)),
        ([{"CPU": 64.0}], {}, (2, 0.0, 20)),
        ([{"CPU": 64.0}], {"ray_actors": 3}, (2, 0.0, 3)),
    ],
)
def test_how_many_actors_fit(
    found: list[dict[str, float]], further: dict[str, Any], expected: tuple[int, float, int]
) -> None:
    """Two threads by the plan, twenty units."""
    own = room(nodes(*found), config(**further), 2, 20)
    assert (own.cpus, own.gpus, own.actors) == expected


def test_a_node_that_is_gone_has_no_room() -> None:
    gone = SimpleNamespace(nodes=lambda: [{"Alive": False, "Resources": {"CPU": 8.0}}])
    with pytest.raises(ConfigError, match="the largest has 0 CPUs and 0 GPUs"):
        room(gone, config(), 1, 1)
