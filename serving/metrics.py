"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from diffusion.engine.engine import ForwardPass
from serving.responses import ModelRef

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Model(Collector):
    """diffctl_model_info: 1, its labels say which model answers now."""

    def __init__(self, model: Callable[[], ModelRef]) -> None:
        self._model = model

    def collect(self) -> list[Metric]:
        """The one sample."""
        model = self._model()
        info = GaugeMetricFamily(
            "diffctl_model_info", "The model that answers now.", labels=["name", "version", "sha256"]
        )
        info.add_metric([model.name, "" if model.version is None else str(model.version), model.sha256], 1)
        return [info]


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        known = {"registry": self._registry, "namespace": "diffctl"}
        self.requests = Counter("requests", "Answers.", ["path", "status"], **known)  # type: ignore[arg-type]
        self.seconds = Histogram(
            "request_seconds", "From a request to its answer's end.", ["path"], buckets=SECONDS, **known  # type: ignore[arg-type]
        )  # fmt: skip
        self.active = Gauge("requests_active", "Requests that wait for their answer's end.", **known)  # type: ignore[arg-type]
        self.gone = Counter("requests_gone", "Requests whose client left before the end.", **known)  # type: ignore[arg-type]
        self.images = Counter("images", "Images that were made.", **known)  # type: ignore[arg-type]
        self.held = Gauge("images_held", "Images at work and in the queue.", **known)  # type: ignore[arg-type]
        self.rows = Histogram("pass_rows", "Rows of the network's passes.", buckets=ROWS, **known)  # type: ignore[arg-type]
        self.reloads = Counter("reloads", "Looks for another champion that found one.", ["outcome"], **known)  # type: ignore[arg-type]

    def of(self, model: Callable[[], ModelRef], held: Callable[[], int], active: Callable[[], int]) -> None:
        """Tell of this model and of what is at work, as they are whenever someone looks."""
        self._registry.register(_Model(model))
        self.held.set_function(held)
        self.active.set_function(active)

    def see(self, done: ForwardPass) -> None:
        """Count a pass of an engine."""
        if done.rows:
            self.rows.observe(done.rows)
        self.images.inc(sum(len(job) for job in done.ended if job.images is not None))

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
