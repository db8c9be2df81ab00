"""Diffusion models of DDPM, Improved DDPM, DDIM, ADM and classifier-free guidance, from the papers.

The library is independent of servers: it imports no prefect, dvc, mlflow or typer.
Plugins are loaded by `diffusion.project`, not by importing the package.
"""

from diffusion.system.loaded_code import keep_sources

keep_sources()
