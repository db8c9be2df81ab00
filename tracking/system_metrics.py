"""Load of CPU, memory and GPUs, with the names of MLflow's page of system metrics."""

from contextlib import suppress
from typing import Any

MEGABYTE = 1e6


class SystemMetrics:
    """Reads the machine's load; each reading is the mean since the reading before.

    GPUs need nvidia-ml-py (extra `gpu`) and a driver.
    """

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        psutil.cpu_percent()  # start of the first interval
        self._nvml: Any = None
        self._gpus: list[Any] = []
        with suppress(ImportError):
            import pynvml

            self._nvml = pynvml
            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                count = pynvml.nvmlDeviceGetCount()
                self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def read(self) -> dict[str, float]:
        """Return loads in percent, memory in megabytes (10⁶ bytes), power in watts."""
        import psutil

        memory = psutil.virtual_memory()
        readings = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        for index, gpu in enumerate(self._gpus):
            readings |= {f"gpu_{index}_{name}": value for name, value in self._read_gpu(gpu).items()}
        return {f"system/{name}": value for name, value in readings.items()}

    def _read_gpu(self, gpu: Any) -> dict[str, float]:
        """Return the readings that a GPU allows; a MIG slice, for example, refuses its load."""
        nvml, values = self._nvml, dict[str, float]()
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
            values["memory_usage_megabytes"] = memory.used / MEGABYTE
            values["memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(nvml.NVMLError):
            values["utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        with suppress(nvml.NVMLError):
            values["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        return values
