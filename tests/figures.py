"""The figures of docs/theory.md with the commands that create them, and the README's picture.

`python -m tests.figures --write [FOLDER]` creates them again. FOLDER is a project, by default this one. Run
`make demo` there first, since some figures show its data and model. Without --write, the commands are listed.
"""

import subprocess
import sys
from pathlib import Path

from diffusion.images.store import Images
from tests.conftest import ROOT, command, environment

FOLDER = ROOT / "docs/figures"

PICTURE = FOLDER / "samples.png"  # in the README: steps × η
STEPS, ETAS = (2, 5, 10, 50), (0.0, 0.5, 1.0)

FIGURES = {
    "forward": ["forward", "--image", "7"],
    "model": ["model", "--profile", "digits"],
    "variance": ["variance"],
    "variance-20-steps": ["variance", "--steps", "20"],
    "reverse-ancestral": ["reverse", "--index", "3", "--steps", "1000", "--eta", "1", "--noise", "learned"],
    "reverse-10-steps": ["reverse", "--index", "3", "--steps", "10"],
    "steps": ["steps", "--steps", "10", "--profile", "digits"],
    "samplers": ["samplers", "--steps", "10", "--spacing", "quadratic", "--profile", "digits"],
    "guided": ["reverse", "--index", "3", "--class", "8", "--steps", "10", "--guidance", "2"],
    "unguided": ["reverse", "--index", "3", "--class", "8", "--steps", "10"],
}


def format_command(name: str) -> str:
    """Return the command of a figure, as a user types it."""
    return f"diffctl show {' '.join(FIGURES[name])} --out docs/figures/{name}.svg"


def make(name: str, project: Path, folder: Path) -> None:
    """Write a figure of a project's data and model into the folder."""
    out = folder / f"{name}.svg"
    arguments = ["show", *FIGURES[name], "--out", str(out)]
    subprocess.run(command(*arguments), cwd=project, env=environment({"PYTHONPATH": str(ROOT)}), check=True)


def samples(model: Path) -> dict[tuple[int, str], Images]:
    """Return the first images of a model by steps and η, as pictures (H, W, C) from the same noise."""
    from diffusion.images.pictures import sheet
    from diffusion.model.model_file import load_model
    from diffusion.protocol.settings import parse_settings
    from diffusion.report.sample_pictures import TILE, TILE_COLUMNS
    from diffusion.sample.class_labels import mixed_condition
    from diffusion.sample.generate import generate
    from diffusion.system.devices import default_device

    device = default_device()
    loaded = load_model(model, device)
    tiles = {}
    for eta in ETAS:
        for steps in STEPS:
            settings = parse_settings({}, steps=steps, eta=eta)
            condition = mixed_condition(loaded.artefact, settings, range(TILE))
            images = generate(loaded, settings, range(TILE), condition, device)
            tiles[steps, f"η = {eta:g}"] = sheet(images.numpy().transpose(0, 2, 3, 1), TILE_COLUMNS)
    return tiles


def picture(model: Path) -> bytes:
    """Return the README's picture as PNG, at 3/5 of the size in a report."""
    from io import BytesIO

    from PIL import Image

    from diffusion.report.figure_base import as_png
    from diffusion.report.figures import montage

    with Image.open(BytesIO(as_png(montage(samples(model))))) as drawn:
        grey = drawn.convert("L").resize(
            (drawn.width * 3 // 5, drawn.height * 3 // 5), Image.Resampling.LANCZOS
        )
    buffer = BytesIO()
    grey.quantize(32).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Create the figures, or list their commands."""
    if "--write" not in sys.argv[1:]:
        print("\n".join(map(format_command, FIGURES)))
        return
    project = Path(next((word for word in sys.argv[1:] if word != "--write"), ROOT)).resolve()
    for name in FIGURES:
        make(name, project, FOLDER)
    PICTURE.write_bytes(picture(project / "models/model.safetensors"))


if __name__ == "__main__":
    main()
