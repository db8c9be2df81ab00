"""What MLflow's page of a model version says: Markdown, and a picture of its samples.

MLflow's page drops data: addresses of images, and a description has 5,000 characters. So the picture is an
artifact beside the model, and the page shows it from there.
"""

from pathlib import Path
from urllib.parse import urlencode

from diffusion.choice.selection import describe_selection
from diffusion.images.pictures import png_bytes
from diffusion.images.store import open_store
from diffusion.images.store_meta import CellMeta
from diffusion.layout import SAMPLES
from diffusion.model.model_file import Artefact
from diffusion.protocol.grid import Cell, cell_order, describe_cell
from diffusion.protocol.paper_mismatch import score_mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.scores import CellScores, ScoresDocument
from diffusion.report.sample_pictures import tile
from diffusion.system.section import brief
from tracking.pages.markdown import score_names, score_table

MONTAGE = "montage.png"
MAX_CHARACTERS = 5000  # of a description in MLflow's database
MAX_ROWS = 20
MAX_NAME_LENGTH = 200  # of a name that somebody gave


def samples_montage(document: ScoresDocument, samples: Path = SAMPLES) -> bytes | None:
    """The first images of the best cell as a PNG; None where its samples are not here or are others."""
    cell = document.cells[document.best.cell]
    folders = [samples / document.best.cell, samples / _name_in_sweep(cell)]
    found = next((folder for folder in reversed(folders) if folder.is_dir()), None)
    if found is None:
        return None
    store, wanted = open_store(found, CellMeta), cell.card.get("model_sha256")
    return png_bytes(tile(store)) if store.meta["card"].get("model_sha256") == wanted else None


def _name_in_sweep(cell: CellScores) -> str:
    """The cell's name in a sweep over averages, of which its model is one."""
    width = cell.card.get("ema")
    is_width = isinstance(width, float)
    return Cell(**{**cell.axes, "ema": width}).name if is_width else Cell(**cell.axes).name


def describe_version(
    artefact: Artefact, document: ScoresDocument, run_id: str, folder: str, with_montage: bool
) -> str:
    """What was trained, on what, how it scores and how to sample it, as Markdown for MLflow's page.

    `folder` is where the run's artifacts have the registered model, and the picture with it.
    """
    parts = [_trained(artefact), f"Best: {describe_selection(document.best)}."]
    if with_montage:
        address = urlencode({"path": f"{folder}/{MONTAGE}", "run_uuid": run_id})
        parts.append(f"![samples](get-artifact?{address})")
    parts += [_table(document), _against(document)]
    if document.protocol is not None:
        parts.append(_protocol(artefact, document, document.protocol))
    parts.append(_sampling(run_id))
    return "\n\n".join(parts)[:MAX_CHARACTERS]


def _trained(artefact: Artefact) -> str:
    spec, process, data = artefact.network, artefact.process, artefact.data
    classes = f"{spec.num_classes} classes" if spec.num_classes else "no classes"
    width = artefact.ema_width
    average = f", the power-function average of width σ_rel = {width:g}" if width else ""
    return (
        f"**{_plain(data.name)}**, {spec.image_size}×{spec.image_size}×{spec.in_channels}, {classes}: "
        f"network {_plain(spec.name)}, {artefact.step:,} steps of training, "
        f"process {_plain(process.schedule)} of {process.timesteps:,} timesteps, "
        f"{_plain(process.prediction)}, precision {_plain(artefact.precision)}{average}."
    )


def _table(document: ScoresDocument) -> str:
    """The cells' scores, the best marked; of a large sweep those of the fewest steps and the best."""
    names = score_names(document)
    cells = sorted(document.cells.items(), key=lambda item: cell_order(item[1].axes))
    shown = [item for item in cells if item[0] != document.best.cell][: MAX_ROWS - 1]
    best = document.best.cell, document.cells[document.best.cell]
    rows = []
    for name, cell in sorted([*shown, best], key=lambda item: cell_order(item[1].axes)):
        mark = "**" * (name == best[0])
        values = (f"{cell.scores[metric]:.4g}" for metric in names)
        rows.append([f"{mark}{_plain(describe_cell(cell.axes))}{mark}", *values])
    left = len(cells) - len(shown) - 1
    return score_table(names, rows) + (f"\n\n{left} more cells are in its scores.json." if left else "")


def _against(document: ScoresDocument) -> str:
    reference, cell = document.reference, document.cells[document.best.cell]
    return (
        f"{cell.num_images:,} images a cell against {reference.reference_count:,} "
        f"of {_plain(reference.name)} ({_plain(reference.reference_split)}), "
        f"extractor {document.spec.name}. Each cell's protocol card is in scores.json beside the weights."
    )


def _protocol(artefact: Artefact, document: ScoresDocument, name: str) -> str:
    """Where the scores depart from the paper's protocol that they name."""
    found = score_mismatches(document, name, artefact.process.model_dump(mode="json"))
    said = "".join(f"\n- {_plain(str(one))}" for one in found)
    return f"By the protocol of {PROTOCOLS[name].paper}" + (f", but:\n{said}" if found else ".")


def _sampling(run_id: str) -> str:
    return (
        "To sample it:\n\n"
        f"    diffctl sample --run-id {run_id} --num 16 --out samples.png\n"
        "    diffctl sample --champion --num 16 --out samples.png    # while it is champion"
    )


def _plain(text: str) -> str:
    """Somebody's words in Markdown: nothing in them is markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in brief(text, str, MAX_NAME_LENGTH))
