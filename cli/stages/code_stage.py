"""The stage `code`: the digests of the code of all other stages, in code.yaml."""

from cli.stages.context import share_runs
from flows.stage_code import write_stage_code


def run_stage(_: object) -> None:
    """Write code.yaml."""
    share_runs()  # runs/ has what is known of modules
    write_stage_code()
