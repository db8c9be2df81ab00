"""`diffctl playground`: a page to try a model by."""

from typing import Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, refuse_two_models
from cli.commands.serve import address_of, require_packages, say, source_of
from cli.shared.first_word import begin
from cli.shared.images import StorePath

USUAL_PORT = 8081
DRAIN = 5  # seconds at the end for what was begun: whoever ends it looks at the page


def playground(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = USUAL_PORT,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    store: StorePath = None,
) -> None:
    """Try a model in the browser, until Ctrl-C: images as they form, steps × η, the way between two.

    The page is served on this machine alone and loads nothing from elsewhere.
    """
    require_packages()
    refuse_two_models(model, run_id, champion)
    begin("loading the model")
    from diffusion.layout import PREPARED
    from diffusion.system.devices import default_device
    from serving.app import create_app
    from serving.http_server import bind_socket
    from serving.http_server import serve as serve_app
    from serving.playground.model_choice import ChoosableSource
    from serving.playground.router import playground as routes
    from serving.serve_config import ServeConfig
    from serving.service import Service

    at = bind_socket("127.0.0.1", port, has_token=False)
    source = ChoosableSource(source_of(model, run_id, champion))
    service = Service(source, default_device(), ServeConfig(drain=DRAIN), say)
    app = create_app(service, None, routes(service, source, store or PREPARED / "test"))

    def started() -> None:
        typer.echo(f"{service.name.name}: {address_of(*at.getsockname()[:2])}/ (Ctrl-C ends it)")

    serve_app(app, service, at, started)
