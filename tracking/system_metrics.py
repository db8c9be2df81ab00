"""Load of CPU, memory and GPUs, with the names of MLflow's page of system metrics."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

AsyncMetrics = dict[str, float]
MEGABYTE = 1e6


class SystemMetrics:
    """Reads the machine's load; each reading is the mean since the reading before."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        psutil.cpu_percent()  # start of the first interval
        self._gpus = _gpus()

    def read(self) -> AsyncMetrics:
        """Return loads in percent, memory in megabytes (10⁶ bytes), power in watts; GPUs if NVML has them."""
        import psutil

        memory = psutil.virtual_memory()
        readings = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        for index, read_gpu in enumerate(self._gpus):
            readings |= {f"gpu_{index}_{name}": value for name, value in read_gpu().items()}
        return {f"system/{name}": value for name, value in readings.items()}


def _gpus() -> list[Callable[[], AsyncMetrics]]:
    """Return a reader for each GPU; none without nvidia-ml-py (extra `gpu`) or without a driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []

    return [partial(_read_gpu, pynvml, handle) for handle in handles]


def _read_gpu(nvml: Any, handle: object) -> AsyncMetrics:
    """Return the readings that a GPU allows; a MIG slice, for example, refuses its load."""
    values: AsyncMetrics = {}
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        values["memory_usage_megabytes"] = memory.used / MEGABYTE
        values["memory_usage_percentage"] = 100 * memory.used / memory.total
    with suppress(nvml.NVMLError):
        values["utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with suppress(nvml.NVMLError):
        values["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return values
