"""`diffctl use`: write a profile, a pretrained model or the protocol of a paper into params.yaml."""

from typing import Annotated

import typer

from cli.shared.options import profile_names
from cli.shared.startup_message import begin
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.errors import UsageError, printable


def use(
    profile: Annotated[
        str | None, typer.Argument(help="A name in profiles/, or a file.", autocompletion=profile_names)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite unsaved edits.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="MODEL",
            help="Train from a file, an MLflow run, champion[:DATA] or version:N[:DATA]; or from none.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="PAPER",
            help="Set what a paper's protocol states: adm, edm or ddim.",
            autocompletion=lambda: list(PROTOCOLS),
        ),
    ] = None,
) -> None:
    """Copy a profile to params.yaml, comments included; pin the model that its training starts from.

    --protocol writes each field in which params.yaml departs from a paper, and says which and why.
    """
    if profile is None and start is None and protocol is None:
        raise UsageError("name a profile, a model with --start, or a paper with --protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"--protocol {printable(protocol)}: give one of {', '.join(PROTOCOLS)}")
    if profile is not None:
        from cli.actions.params_file import use_profile

        use_profile(profile, force)
    if protocol is not None:
        begin("loading the protocol")
        from cli.actions.paper_protocol import use_protocol

        use_protocol(protocol)
    if start is not None:
        begin("looking for the model")
        from cli.actions.pretrained_model import use_pretrained

        use_pretrained(start)
