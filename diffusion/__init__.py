"""Diffusion models of DDPM, Improved DDPM, DDIM, ADM and classifier-free guidance, from the papers.

The library knows nothing of servers: no prefect, dvc, mlflow or typer is imported below this package.
The entries of the project's plugins are added to the registries when it is imported.
"""

from pathlib import Path

from diffusion.project_code import check_project_code
from diffusion.system.loaded_code import keep_sources
from diffusion.system.registry import load_plugins

keep_sources()
check_project_code(Path())
load_plugins()
