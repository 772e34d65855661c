"""Energy as the GPU itself counts it, over NVML: a counter of millijoules since the driver started.

In: nothing. Out: `Counter.joules`, of all GPUs that this process may see; or why there is none. It
is never estimated.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True, kw_only=True)
class Counter:
    """A counter of energy.

    Attributes:
        nvml: the module pynvml, initialised, or None.
        why: why nothing is counted, or was at the last reading that failed, or "".
    """

    nvml: Any
    why: str = ""

    def joules(self) -> float | None:
        """Energy so far of all GPUs; a difference holds everything that ran on them, and idling."""
        if self.nvml is None:
            return None
        try:
            counts = [
                self.nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle(device))
                for device in range(torch.cuda.device_count())
            ]
        except self.nvml.NVMLError as error:
            self.why = f"NVML does not tell the energy of the GPU: {error}"
            return None
        return float(sum(counts)) / 1e3

    def _handle(self, device: int) -> Any:
        """NVML numbers all GPUs, torch those that it may see: they meet at the UUID."""
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return self.nvml.nvmlDeviceGetHandleByUUID(uuid if uuid[:4] == "GPU-" else f"GPU-{uuid}")


def counter() -> Counter:
    """The counter of this machine."""
    if not torch.cuda.is_available():
        return Counter(nvml=None, why="there is no GPU that counts its energy")
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Counter(nvml=None, why="pynvml is not installed; run: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Counter(nvml=None, why=f"NVML does not answer: {error}")
    return Counter(nvml=nvml)


def spent(before: float | None, after: float | None) -> float | None:
    """Energy between two readings, or None where one is missing."""
    return None if before is None or after is None else after - before
