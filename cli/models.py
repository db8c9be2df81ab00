"""Commands over one model: from a file, an MLflow run or the registry; no model flags are ever needed."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.budget import budget_settings, refuse_beside_budget, scores_of
from cli.progress import Show, progress

if TYPE_CHECKING:
    from diffusion.checkpoint import LoadedModel
    from diffusion.classifier import LoadedClassifier
    from diffusion.data.store import Images
    from diffusion.settings import SampleSettings

GIF_FRAMES = 60  # at most, however many steps

ModelFile = Annotated[
    Path | None, typer.Option("--model", help="A model file. [default: models/unet.safetensors]")
]
RunId = Annotated[str | None, typer.Option("--run-id", help="The model of this MLflow run.")]
Champion = Annotated[
    bool, typer.Option("--champion", help="The registered champion for this params.yaml's data.")
]

Klass = Annotated[str | None, typer.Option("--class", help="By name or number. [default: all in turn]")]


class Noise(StrEnum):
    """What is added at each step (DDIM's Table 1, and iDDPM's learned variance)."""

    small = "small"
    large = "large"
    learned = "learned"


class Spacing(StrEnum):
    """How the sampling steps lie on the model's timesteps."""

    uniform = "uniform"
    quadratic = "quadratic"
    trailing = "trailing"


class Sampler(StrEnum):
    """The reverse step of DDPM, iDDPM and DDIM, or the multistep solver of order 2 (2211.01095)."""

    ddim = "ddim"
    dpm_solver = "dpm-solver++"


def resolve_model(model: Path | None, run_id: str | None, champion: bool) -> Path:
    """The model file that is meant; UsageError when more than one is named."""
    from diffusion.errors import UsageError
    from diffusion.layout import MODEL

    if sum((model is not None, run_id is not None, champion)) > 1:
        raise UsageError("--model, --run-id and --champion exclude each other: give one of them")
    if run_id is not None:
        from tracking.runs import fetch_model

        return fetch_model(run_id)
    if champion:
        from diffusion.config import load
        from tracking.names import model_name
        from tracking.registry import fetch_champion

        return fetch_champion(model_name(load().data.name))
    return model or MODEL


def sample(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.png (a grid), .gif (the denoising) or .npz.")
    ],
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="Images 0 … N−1. [default: 16]")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", min=0, help="Image I alone, as in any batch.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampling steps, 1 … the model's T. [default: 50]")
    ] = None,
    eta: Annotated[float, typer.Option("--eta", min=0.0, help="0: deterministic DDIM; 1: DDPM.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="Network evaluations an image: the sweep's best cell for them."),
    ] = None,
    klass: Klass = None,
    guidance: Annotated[
        float, typer.Option("--guidance", min=0.0, help="w of classifier-free guidance.")
    ] = 0.0,
    classifier: Annotated[
        Path | None, typer.Option("--classifier", help="Guide by a file of `diffctl stage classifier`.")
    ] = None,
    classifier_scale: Annotated[
        float, typer.Option("--classifier-scale", min=0.0, help="How strongly (ADM's s).")
    ] = 1.0,
    noise: Annotated[Noise, typer.Option("--noise")] = Noise.small,
    spacing: Annotated[Spacing, typer.Option("--spacing")] = Spacing.uniform,
    timesteps: Annotated[
        str | None, typer.Option("--timesteps", help="T0,T1,… instead of --steps and --spacing.")
    ] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler")] = Sampler.ddim,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was made as JSON.")] = False,
) -> None:
    """Sample images from a model, which describes itself. Image I depends on the seed and I alone."""
    from diffusion.checkpoint import load_model
    from diffusion.classifier import load_classifier
    from diffusion.config import parse_settings
    from diffusion.errors import UsageError
    from diffusion.generate import check_settings
    from diffusion.grid import spoken
    from diffusion.precision import default_device

    if out.suffix not in WRITERS:
        raise UsageError(f"--out {out}: give a file that ends in {', '.join(WRITERS)}")
    if num is not None and index is not None:
        raise UsageError("--num and --index exclude each other: give one of them")
    if budget is not None:
        refuse_beside_budget(context)
    indices = range(index, index + 1) if index is not None else range(num or 16)
    settings = parse_settings(
        {"steps": steps, "timesteps": timesteps},
        sampler=sampler.value,
        eta=eta,
        seed=seed,
        guidance=guidance,
        classifier_scale=classifier_scale if classifier else 0.0,
        noise=noise.value,
        spacing=spacing.value,
    )
    path = resolve_model(model, run_id, champion)
    if budget is not None:
        settings = budget_settings(budget, seed, path, scores_of(path, run_id, champion))
    loaded = load_model(path, default_device())
    check_settings(loaded.artefact, settings)
    guide = load_classifier(classifier, default_device()) if classifier else None
    with progress("sample") as show:
        frames, labels = _frames(
            loaded, guide, settings, indices, klass, batch_size, out.suffix == ".gif", show
        )
    WRITERS[out.suffix](out, frames, labels)
    made: dict[str, Any] = {"out": str(out), "indices": list(indices), **settings.model_dump(mode="json")}
    text = f"{len(indices)} image(s) of {loaded.artefact.data.name}: {out}"
    if budget is not None:
        text = f"{spoken(vars(settings))}, the best of its sweep for {budget} network evaluations\n{text}"
    typer.echo(json.dumps(made) if as_json else text)


def _frames(
    loaded: "LoadedModel",
    classifier: "LoadedClassifier | None",
    settings: "SampleSettings",
    indices: range,
    klass: str | None,
    batch_size: int,
    animate: bool,
    show: Show,
) -> tuple[list["Images"], list[int] | None]:
    """The images as the last of the frames (one alone unless animated), NHWC, and their labels."""
    import numpy as np
    import torch

    from diffusion.generate import class_index, generate, labels_of
    from diffusion.images import to_nhwc, to_uint8
    from diffusion.sampling import Step

    network, artefact = loaded
    device = next(network.parameters()).device
    every = -(-settings.steps // GIF_FRAMES)
    knows_classes = classifier.artefact if classifier else artefact
    labels = labels_of(knows_classes, settings, indices)
    if klass is not None:
        labels = torch.full((len(indices),), class_index(knows_classes, klass))
    batches = []
    for start in range(0, len(indices), batch_size):
        frames: list[Images] = []

        def keep(step: Step, frames: list["Images"] = frames) -> None:
            if animate and (step.done % every == 0 or step.done == step.total):
                frames.append(to_nhwc(to_uint8(step.x)))

        show(start, len(indices), "")
        part = slice(start, start + batch_size)
        wanted = None if labels is None else labels[part]
        images = generate(network, artefact, settings, indices[part], wanted, device, keep, classifier)
        batches.append(frames or [to_nhwc(images)])
    show(len(indices), len(indices), "")
    return [
        np.concatenate(parts) for parts in zip(*batches, strict=True)
    ], None if labels is None else labels.tolist()


def _picture(images: "Images") -> "Images":
    from diffusion.pictures import enlarge, grid

    columns = min(len(images), 10 if len(images) % 10 == 0 else max(1, round(len(images) ** 0.5)))
    return enlarge(grid(images, columns), images.shape[1])


def _png(out: Path, frames: list["Images"], labels: list[int] | None) -> None:
    from diffusion.pictures import save_png

    save_png(out, _picture(frames[-1]))


def _gif(out: Path, frames: list["Images"], labels: list[int] | None) -> None:
    from diffusion.pictures import save_gif

    save_gif(out, [_picture(frame) for frame in frames])


def _npz(out: Path, frames: list["Images"], labels: list[int] | None) -> None:
    """OpenAI's evaluator's format: arr_0 the images, arr_1 their labels."""
    import numpy as np

    from diffusion.files import write_atomic

    arrays = [frames[-1]] if labels is None else [frames[-1], np.asarray(labels, dtype=np.int64)]
    write_atomic(out, lambda file: np.savez(file, *arrays))


WRITERS = {".png": _png, ".gif": _gif, ".npz": _npz}
