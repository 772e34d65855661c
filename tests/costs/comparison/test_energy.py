"""The energy counter: of NVML where there is one, else a reason; never an estimate."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from cachekd.costs.comparison.energy import counter, spent


class NVMLError(Exception):
    pass


def gpus(monkeypatch: pytest.MonkeyPatch, uuids: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i])
    )


def nvml(energy: dict[str, int]) -> SimpleNamespace:
    def read(handle: str) -> int:
        if handle not in energy:
            raise NVMLError("not supported")
        return energy[handle]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


def test_without_a_gpu_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, [])
    found = counter()
    assert found.joules() is None and "no GPU" in found.why


def test_without_the_library_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, ["a"])
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in counter().why


def test_millijoules_of_all_visible_gpus_met_by_their_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, ["a", "GPU-b"])
    energy = {"GPU-a": 1500, "GPU-b": 500, "GPU-other": 10**9}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(energy))
    found = counter()
    before = found.joules()
    assert before == 2.0 and found.why == ""
    energy["GPU-b"] += 250
    assert spent(before, found.joules()) == 0.25


def test_a_gpu_that_does_not_count_gives_none_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, ["a"])
    monkeypatch.setitem(sys.modules, "pynvml", nvml({}))
    found = counter()
    assert found.joules() is None
    assert found.why == "NVML does not tell the energy of the GPU: not supported"
    assert spent(None, 3.0) is None and spent(3.0, None) is None


def test_a_driver_that_does_not_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, ["a"])
    broken = nvml({})

    def fails() -> None:
        raise NVMLError("driver not loaded")

    broken.nvmlInit = fails
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert "driver not loaded" in counter().why
