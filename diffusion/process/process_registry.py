"""The processes by name: `process.schedule` in params.yaml. It loads no torch.

A further one is a module with a builder, ProcessConfig → Process, and an entry here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.system.references import load_reference, reference_module

if TYPE_CHECKING:
    from diffusion.process.noise_process import NoiseProcess
    from diffusion.process.process_config import ProcessConfig

CHANGES_RESULTS = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class ProcessEntry:
    """`builder` makes a Process of its section; `config` is that section's class, each a "module:name".

    A process with options of its own has a subclass of ProcessConfig.
    """

    builder: str
    config: str = "diffusion.process.process_config:ProcessConfig"

    @property
    def module(self) -> str:
        """The module that computes this process."""
        return reference_module(self.builder)


PROCESSES = {
    "linear": ProcessEntry("diffusion.process.noise_schedules:linear"),
    "cosine": ProcessEntry("diffusion.process.noise_schedules:cosine"),
}


def build_process(config: "ProcessConfig") -> "NoiseProcess":
    """The process that the section describes."""
    process: NoiseProcess = load_reference(PROCESSES[config.schedule].builder)(config)
    return process
