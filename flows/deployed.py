"""The flows of prefect.yaml. Importing this module enters the project of the working directory.

A flow run is a process of its own, which starts in the project after the pull step and needs its plugins.
"""

from diffusion.project import enter_project

enter_project()

from flows.champion import evaluate, sweep_champion
from flows.pipeline import pipeline

__all__ = ["evaluate", "pipeline", "sweep_champion"]
