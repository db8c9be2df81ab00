"""System metrics: readings of psutil, and of GPUs where NVML exists."""

import sys
from unittest.mock import Mock

import psutil
import pytest

from tracking.system_metrics import SystemMetrics


class NVMLError(Exception):
    pass


refuse = Mock(side_effect=NVMLError)


def test_cpu_and_memory_are_read_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Mock(NVMLError=NVMLError, nvmlInit=refuse))
    readings = SystemMetrics().read()
    assert 0 <= readings["system/cpu_utilization_percentage"] <= 100
    assert 0 < readings["system/system_memory_usage_percentage"] <= 100
    rss = psutil.Process().memory_info().rss / 1e6
    assert readings["system/process_memory_usage_megabytes"] == pytest.approx(rss, rel=0.2)
    assert not any("gpu" in name for name in readings)


def test_gpu_readings_omit_what_the_driver_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Mock(NVMLError=NVMLError, nvmlDeviceGetUtilizationRates=refuse)
    nvml.nvmlDeviceGetCount.return_value = 1
    nvml.nvmlDeviceGetMemoryInfo.return_value = Mock(used=20e9, total=80e9)
    nvml.nvmlDeviceGetPowerUsage.return_value = 350_000
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    readings = SystemMetrics().read()
    assert readings["system/gpu_0_memory_usage_megabytes"] == 20_000
    assert readings["system/gpu_0_memory_usage_percentage"] == 25
    assert readings["system/gpu_0_power_usage_watts"] == 350
    assert "system/gpu_0_utilization_percentage" not in readings
