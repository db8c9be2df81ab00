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
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="MODEL",
            help="Initial weights: a file, MLflow run, champion[:DATA], version:N[:DATA] or none.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="PAPER",
            help="Follow the protocol of a paper: adm, edm or ddim.",
            autocompletion=lambda: list(PROTOCOLS),
        ),
    ] = None,
) -> None:
    """Copy a profile to params.yaml, or edit params.yaml in place.

    --init-from pins the initial weights. --protocol sets each field that differs from a paper, and lists
    the changes with their sources.
    """
    if profile is None and init_from is None and protocol is None:
        raise UsageError("name a profile, a model with --init-from, or a paper with --protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"--protocol {printable(protocol)}: give one of {', '.join(PROTOCOLS)}")
    if profile is not None:
        from cli.actions.params_file import use_profile

        use_profile(profile, force)
    if protocol is not None:
        begin("loading the protocol")
        from cli.actions.paper_protocol import use_protocol

        use_protocol(protocol)
    if init_from is not None:
        begin("looking for the model")
        from cli.actions.pretrained_model import use_pretrained

        use_pretrained(init_from)
