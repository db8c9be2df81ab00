"""Which score says that one model is better than another. Lower is better, always."""

from typing import Any

FEW_IMAGES = 5000  # below, the Fréchet distance is biased by N and the unbiased kernel distance ranks

Cells = dict[str, dict[str, Any]]


def rank_metric(cell: dict[str, Any]) -> str:
    """The score to rank a cell by: `kd_…` (or `kid`) below 5,000 images, else `excess` (or `fd_…`)."""
    scores: dict[str, float] = cell["scores"]
    kernel = _named(scores, "kd_", "kid")
    if cell["card"]["num_images"] < FEW_IMAGES:
        return kernel
    return "excess" if "excess" in scores else _named(scores, "fd_", "fid")


def best(cells: Cells) -> tuple[str, str, float]:
    """The best cell's name, its metric and its value; of equal ones that with the fewest steps."""

    def order(name: str) -> tuple[float, int, str]:
        cell = cells[name]
        return cell["scores"][rank_metric(cell)], cell["steps"], name

    name = min(cells, key=order)
    metric = rank_metric(cells[name])
    return name, metric, cells[name]["scores"][metric]


def ranks(metric: str) -> bool:
    """Whether lower values of a score mean a better model. Inception scores and spreads never rank."""
    return metric.startswith(("kd_", "kid", "fd_", "fid", "excess")) and not metric.endswith("_std")


def _named(scores: dict[str, float], prefix: str, inception: str) -> str:
    names = [name for name in scores if name == inception or name.startswith(prefix)]
    return next(name for name in names if not name.endswith("_std"))
