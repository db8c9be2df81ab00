"""Diffusion models of DDPM, Improved DDPM, DDIM, ADM and classifier-free guidance, from the papers.

The library knows nothing of servers: no prefect, dvc, mlflow or typer is imported below this package.
Plugins are loaded by `diffusion.project`, not by importing the package.
"""

from diffusion.system.loaded_code import keep_sources

keep_sources()
