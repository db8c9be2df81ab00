"""The library for scripts and notebooks: train a network in memory, sample it, load what `diffctl` trained.

    import torch
    from sklearn.datasets import load_digits
    from diffctl import ProcessConfig, UNetSpec, build_network, build_process, fit, sample

    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1  # in [−1, 1]
    shape = dict(image_size=8, in_channels=1, out_channels=1, num_classes=0)
    spec = UNetSpec(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), **shape)
    process = build_process(ProcessConfig(variance="small", loss="simple", prediction="velocity"))
    model = fit(build_network(spec), process, images, steps=600)
    made = sample(model, process, 16, (1, 8, 8))  # (16, 1, 8, 8)

The names are those of `diffusion.api`, which is imported when one is used, and `project`.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffctl.installation import check_packages

if TYPE_CHECKING:
    from diffusion.api import *

__all__ = [
    "Condition",
    "DiTSpec",
    "FitStep",
    "PointNetwork",
    "ProcessConfig",
    "SampleSettings",
    "UNetSpec",
    "build_network",
    "build_process",
    "fit",
    "generate",
    "load_model",
    "print_progress",
    "project",
    "sample",
    "save_model",
]


def project(path: Path | str = ".") -> Path:
    """Load the plugins of the project at or above `path`, and return its folder: `load_project`."""
    check_packages()
    from diffusion.project import load_project

    return load_project(path)


def __getattr__(name: str) -> Any:
    """Return a name of `diffusion.api`; ImportError if another distribution has replaced a package."""
    if name == "__version__":
        from diffusion.version import VERSION

        return VERSION
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_packages()
    return getattr(importlib.import_module("diffusion.api"), name)


def __dir__() -> list[str]:
    """Return the names that are meant for scripts, for completion."""
    return [*__all__, "__version__"]
