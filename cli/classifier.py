"""`diffctl stage classifier`: train the classifier for guidance. Opt-in, and no stage of the pipeline."""

from typing import Annotated

import typer

from cli.progress import progress


def classifier(
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the saved state and start again.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Go on though the code has changed.")] = False,
) -> None:
    """Train params.yaml's classifier of noised images, or go on: models/classifier.safetensors."""
    from diffusion.checkpoint import DataCard, save_artefact
    from diffusion.classifier_training import (
        classifier_code,
        classifier_result,
        new_classifier,
        resolve_classifier,
        train_classifier,
    )
    from diffusion.config import load
    from diffusion.data.store import open_store
    from diffusion.devices import default_device
    from diffusion.errors import UsageError
    from diffusion.layout import CLASSIFIER, CLASSIFIER_CURVE, CLASSIFIER_RUNS, PREPARED
    from diffusion.signals import stop_request
    from diffusion.trainrun import open_training, write_loss_curve

    config, store, device = load(), open_store(PREPARED / "train"), default_device()
    if config.classifier is None:
        raise UsageError("params.yaml has no classifier section: give it one with model and train")
    meta = store.meta
    data = DataCard(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        counts=tuple(meta["counts"]),
        digest=store.digest,
        flip=config.data.flip,
    )
    artefact = resolve_classifier(
        config.classifier, config.process, data, meta["image_size"], meta["channels"]
    )
    code = classifier_code(config.process)
    with (
        open_training(artefact, code, CLASSIFIER_RUNS, fresh=fresh, keep=keep) as run,
        stop_request() as stop,
        progress("classifier", per=artefact.train.batch_size) as show,
    ):
        state = new_classifier(artefact, device)
        run.restore(state)
        typer.echo(
            f"classifier: from step {state.step:,} to {artefact.step:,}, state in {run.folder}", err=True
        )
        train_classifier(
            state,
            store,
            device,
            run.save,
            stop.raise_if_set,
            lambda done, total, means: show(
                done, total, " · ".join(f"{name} {value:.4f}" for name, value in means.items())
            ),
        )
        write_loss_curve(CLASSIFIER_CURVE, state.history)
        save_artefact(CLASSIFIER, state.network.state_dict(), classifier_result(artefact, state.code))
    typer.echo(f"classifier: {CLASSIFIER}, for `diffctl sample --classifier {CLASSIFIER}`")
