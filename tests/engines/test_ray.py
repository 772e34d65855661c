"""Actors on a real Ray cluster of several nodes, all on this machine: killed, sick, and sound.

Skipped where ray is not installed: it is an extra of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faulty_teachers
import pytest
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.engines._actors import Actors, plain
from cachekd.errors import ConfigError, Incomplete
from cachekd.store.io import Location
from cachekd.store.reader import open_cache
from cachekd.store.state import read_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray leaves sockets and processes to its own end
]
# No prior is learned, so that the trial scores one batch alone.
FAULTY = {"backend": "faulty_teachers:Faulty", "codec": "plain"}


class Nodes:
    """A cluster: a head that has no CPUs, and nodes of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._small = {"object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self.nodes: list[Any] = []
        self.restore()

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, **self._small)

    def lose(self) -> None:
        """A node ends without a word."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def restore(self) -> None:
        """As many nodes as there were."""
        while len(self.nodes) < 2:
            self.nodes.append(self.add())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    faults = tmp_path_factory.mktemp("faults")
    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        patch.setenv(faulty_teachers.FOLDER, str(faults))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Nodes()
        ray.init(address=found.cluster.address, log_to_driver=False)
        try:
            yield found
        finally:
            ray.shutdown()
            found.cluster.shutdown()


@pytest.fixture
def faults(nodes: Nodes) -> Iterator[Path]:
    """The folder that tells teachers what to do, empty."""
    folder = Path(os.environ[faulty_teachers.FOLDER])
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "data.jsonl", chat_rows(60))


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100, "backend": "dummy"}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def local_root(family: Family, data: Path, cache: Path, **further: Any) -> str:
    return str(cachekd.precompute(config(family, data, cache, **further))["root"])


@contextmanager
def meanwhile(act: Callable[[], None], ready: Callable[[], bool]) -> Iterator[list[bool]]:
    """Within, something is done once, as soon as it may be."""
    done: list[bool] = []
    over = threading.Event()

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not ready() and time.monotonic() < deadline and not over.is_set():
            time.sleep(0.02)
        if not over.is_set():
            act()
            done.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield done
    finally:
        over.set()  # whatever became of the work, nothing is done after it
        thread.join()


def committed(cache: Path) -> int:
    return len(list((cache / "units").glob("*.json")))


@pytest.mark.parametrize(
    "further",
    [{"backend": "hf"}, {"attention": "maps", "rows": "response", "attention_rows": "response"}],
)
def test_actors_give_the_cache_that_one_process_gives(
    family: Family, many: Path, tmp_path: Path, nodes: Nodes, further: dict[str, Any]
) -> None:
    steps: list[Any] = []
    report = cachekd.precompute(
        config(family, many, tmp_path / "ray", engine="ray", **further), progress=steps.append
    )
    assert report["root"] == local_root(family, many, tmp_path / "local", **further)
    assert steps[-1].tokens_done == report["tokens"]
    again = cachekd.precompute(config(family, many, tmp_path / "ray", engine="ray", **further))
    assert again["documents_to_score"] == 0 and again["root"] == report["root"]


@pytest.fixture(scope="module")
def calm(
    family: Family, many: Path, nodes: Nodes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cache that one process makes with a sound teacher."""
    cache = tmp_path_factory.mktemp("calm") / "cache"
    local_root(family, many, cache, backend="dummy", codec="plain")
    return cache


def root_of(cache: Path) -> str:
    return str(open_cache(str(cache)).root)


def test_an_actor_and_a_node_that_die_lose_nothing(
    family: Family, many: Path, tmp_path: Path, nodes: Nodes, faults: Path, calm: Path
) -> None:
    cache = tmp_path / "ray"

    def kill() -> None:
        newest = max(faults.glob("at-work-*"), key=lambda path: path.stat().st_mtime)
        os.kill(int(newest.name.rpartition("-")[2]), signal.SIGKILL)

    with (
        meanwhile(kill, lambda: committed(cache) >= 2) as killed,
        meanwhile(nodes.lose, lambda: bool(killed) and committed(cache) >= 6) as lost,
    ):
        report = cachekd.precompute(config(family, many, cache, engine="ray", **FAULTY))
    nodes.restore()
    assert killed and lost and report["sealed"]
    assert report["root"] == root_of(calm)


def test_units_that_always_fail_are_named_and_all_others_are_committed(
    family: Family, many: Path, tmp_path: Path, nodes: Nodes, faults: Path, calm: Path
) -> None:
    """One raises, one has no memory, and one kills its actor, as a system without memory does."""
    cache = tmp_path / "ray"
    sound = config(family, many, cache, engine="ray", ray_retries=1, **FAULTY)
    plan = next(iter(read_state(Location(str(calm))).plans.values()))
    last = len(plan.units) - 1
    for number, fault in enumerate(("death", "memory", "error")):
        (faults / fault).write_text(plan.unit_keys(last - number)[0].hex())
    with pytest.raises(Incomplete) as stopped:
        cachekd.precompute(sound)
    told = str(stopped.value).splitlines()
    assert stopped.value.exit_code == 3 and told[0].startswith("3 units failed each time")
    assert f"{last - 2} of {last + 1} units are committed" in told[0]
    for line, number, why in zip(
        told[1:],
        (last - 2, last - 1, last),
        ("injected", "out of memory", "its actor died"),
        strict=True,
    ):
        assert line.startswith(f"unit {number}: ") and why in line and line.endswith("(2 tries)")
    assert committed(cache) == last - 2
    for path in faults.iterdir():
        path.unlink()
    assert cachekd.precompute(sound)["root"] == root_of(calm)


def test_an_actor_that_ray_ends_for_its_memory_counts_as_dead(nodes: Nodes) -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

    actors = Actors.__new__(Actors)
    actors.ray = sys.modules["ray"]
    assert actors.died(OutOfMemoryError("ended by the memory monitor"))
    assert actors.died(ActorDiedError())
    raised = RayTaskError("do", "traceback", MemoryError("no memory"))
    assert not actors.died(raised) and isinstance(plain(raised), MemoryError)
    assert not actors.died(raised.as_instanceof_cause())


def test_a_stop_finishes_the_units_in_hand(
    family: Family, many: Path, tmp_path: Path, nodes: Nodes, faults: Path, calm: Path
) -> None:
    cache = tmp_path / "ray"
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with (
        meanwhile(stop, lambda: committed(cache) >= 1),
        pytest.raises(Incomplete, match="by a signal"),
    ):
        cachekd.precompute(config(family, many, cache, engine="ray", **FAULTY))
    before = committed(cache)
    time.sleep(1.0)
    assert committed(cache) == before, "nobody works on"
    assert 0 < before < committed(calm)
    assert cachekd.precompute(config(family, many, cache, **FAULTY))["root"] == root_of(calm)


def test_an_actor_that_no_node_has_room_for(
    family: Family, many: Path, tmp_path: Path, nodes: Nodes
) -> None:
    with pytest.raises(ConfigError, match="the largest has 1 CPUs and 0 GPUs"):
        cachekd.precompute(config(family, many, tmp_path / "c", engine="ray", ray_cpus_per_actor=9))
    assert not (tmp_path / "c").exists()
