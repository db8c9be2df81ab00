"""A small served model: its file, the application, and a network that waits for a gate."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from diffusion.layout import MODEL, RUN, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.scores_document import ScoresDocument, write_scores_document
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.checksums import add_checksum
from diffusion.system.files import write_json
from serving.model_source import FixedSource, ModelSource, PublishedModel
from serving.schemas import ServeConfig
from serving.service import Service
from tests.conftest import command, environment
from tests.helpers.networks import small_model
from tests.helpers.scores_document import document

CPU = torch.device("cpu")
SWEEP = {(4, 0.0): 0.3, (8, 1.0): 0.2}


def scores_of(model: Path, sweep: dict[tuple[int, float], float] = SWEEP) -> ScoresDocument:
    """Return scores of the model over a sweep."""
    return document(sweep, model_sha256=read_artefact(model).model_sha256)


def published(model: Path, version: int | None = 3, scored: bool = True) -> PublishedModel:
    """Return the model as a model source provides it."""
    return PublishedModel("digits", version, NetworkFiles(model), scores_of(model) if scored else None)


def service_of(source: ModelSource | PublishedModel, **config: float) -> Service:
    """Return a service of that source on the CPU."""
    source = FixedSource(source) if isinstance(source, PublishedModel) else source
    return Service(source, CPU, ServeConfig.model_validate(config))


def trained(seed: int, kernel: float) -> str:
    """Write a model and its scores into the working directory, as a training does; return its sha256."""
    sha256 = read_artefact(small_model(MODEL, seed)).model_sha256
    write_scores_document(SCORES, scores_of(MODEL, {(4, 0.0): kernel}))
    write_json(RUN, add_checksum({"key": f"key{seed}", "fingerprint": f"{seed}" * 16}))
    return sha256


class Gate(torch.nn.Module):
    """A network that waits while the gate is closed."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.open, self.reached = network, threading.Event(), threading.Event()

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the network's output once the gate is open."""
        self.reached.set()
        assert self.open.wait(60)
        output: torch.Tensor = self.network(x, t, labels)
        return output


def gated(service: Service) -> Gate:
    """Add a gate to the network that the service will use."""
    published, loaded, guides = service._first
    gate = Gate(loaded.network)
    service._first = published, loaded._replace(network=gate), guides
    return gate


class ServerProcess:
    """`diffctl serve` in a folder, on a free port; it is ready once it has printed its address.

    `name` is another command that serves, `program` what is started in the place of `diffctl`.
    """

    def __init__(
        self, folder: Path, *arguments: str, name: str = "serve", program: Sequence[str] | None = None
    ) -> None:
        self.log = folder / "serve.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*(program or command()), name, "--port", "0", *arguments],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.startup_line = self.process.stdout.readline()
        assert self.startup_line, self.log.read_text()
        self.url = self.startup_line.split()[1].removesuffix("/v1/images").removesuffix("/")
        self.port = int(self.url.rpartition(":")[2])

    def metric(self, name: str, headers: dict[str, str] | None = None) -> float:
        """Return the sum of the metrics whose lines begin with `name`."""
        answer = httpx.get(f"{self.url}/metrics", headers=headers).raise_for_status()
        return sum(
            float(line.rpartition(" ")[2]) for line in answer.text.splitlines() if line.startswith(name)
        )

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it and close its output."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
