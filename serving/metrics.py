"""Metrics of a server for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from diffusion.engine.engine import ForwardPass
from serving.responses import ModelRef

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        known = {"registry": self._registry, "namespace": "diffctl"}
        self.requests = Counter("requests", "Responses.", ["path", "status"], **known)  # type: ignore[arg-type]
        self.seconds = Histogram(
            "request_seconds", "Time from request to end of response.", ["path"], buckets=SECONDS, **known  # type: ignore[arg-type]
        )  # fmt: skip
        self.active = Gauge("requests_active", "Unfinished requests.", **known)  # type: ignore[arg-type]
        self.gone = Counter("requests_gone", "Requests with a disconnected client.", **known)  # type: ignore[arg-type]
        self.images = Counter("images", "Finished images.", **known)  # type: ignore[arg-type]
        self.held = Gauge("images_held", "Images being sampled or queued.", **known)  # type: ignore[arg-type]
        self.rows = Histogram("pass_rows", "Rows per forward pass.", buckets=ROWS, **known)  # type: ignore[arg-type]
        self.model = Gauge(
            "model_info", "1, with the model that serves as labels.", ["name", "version", "sha256"], **known  # type: ignore[arg-type]
        )  # fmt: skip
        self.reloads = Counter("reloads", "Model changes by outcome.", ["outcome"], **known)  # type: ignore[arg-type]

    def set_model(self, model: ModelRef) -> None:
        """Set the model that serves."""
        self.model.clear()
        version = "" if model.version is None else str(model.version)
        self.model.labels(model.name, version, model.sha256).set(1)

    def observe(self, done: ForwardPass) -> None:
        """Count a forward pass of an engine."""
        if done.rows:
            self.rows.observe(done.rows)
        self.images.inc(sum(len(job) for job in done.ended if job.images is not None))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
