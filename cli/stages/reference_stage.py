"""The stage `reference`: features of real images."""

from cli.shared.console import progress
from cli.stages.context import preflight
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.references import make_reference
from diffusion.layout import PREPARED, REFERENCE
from diffusion.system.params import load_section


def run_stage(_: object) -> None:
    """Compute the features of the reference."""
    preflight("reference")
    with progress("reference") as show:
        make_reference(load_section("evaluate", EvaluateConfig), PREPARED, REFERENCE, show)
