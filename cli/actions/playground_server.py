"""The playground: a page that samples a model."""

from pathlib import Path

import typer

from cli.actions.model_server import address_of, print_message, source_of
from cli.shared.options import Selection
from diffusion.layout import PREPARED
from diffusion.system.devices import default_device
from serving.app import create_app
from serving.http_server import bind_socket
from serving.http_server import serve as serve_app
from serving.playground.model_choice import ChoosableSource
from serving.playground.router import playground as routes
from serving.requests import ServeConfig
from serving.service import Service


def serve_playground(port: int, selection: Selection, store: Path | None) -> None:
    """Carry out `diffctl playground`."""
    at = bind_socket("127.0.0.1", port, has_token=False)
    source = ChoosableSource(source_of(selection))
    service = Service(source, default_device(), ServeConfig(drain=DRAIN), print_message)
    app = create_app(service, None, routes(service, source, store or PREPARED / "test"))

    def started() -> None:
        typer.echo(f"{service.ref.name}: {address_of(*at.getsockname()[:2])}/ (Ctrl-C ends it)")

    serve_app(app, service, at, started)


DRAIN = 5  # seconds to finish open requests at the end
