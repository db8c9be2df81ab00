"""What MLflow's pages say in words: Markdown on an experiment and on a training's run.

A note that a person has written or edited in MLflow stays as it is: ours is known by its digest.
"""

import hashlib
from collections.abc import Mapping

from diffusion.choice.selection import describe_selection
from diffusion.protocol.grid import cell_order
from diffusion.protocol.scores import CellScores, ScoresDocument
from tracking.pages.markdown import score_names, score_table

NOTE = "mlflow.note.content"  # MLflow's own name: its UI shows it as the description
DIGEST = "diffctl.note"  # of the note as we wrote it

Tags = Mapping[str, str]


def note_tags(text: str) -> dict[str, str]:
    """The tags that make this a run's or an experiment's note."""
    return {NOTE: text, DIGEST: hashlib.sha256(text.encode()).hexdigest()[:16]}


def changed_note(text: str, tags: Tags) -> dict[str, str]:
    """The tags to set where these are there: none where the note is this one, or a person's."""
    new, current = note_tags(text), tags.get(NOTE, "")
    is_ours = not current.strip() or note_tags(current)[DIGEST] == tags.get(DIGEST)
    return new if is_ours and current != text else {}


def experiment_note(data_name: str) -> str:
    """What an experiment is of, and how to use it."""
    return (
        f"Diffusion models of *{data_name}*, a run each; its children are the cells of the sweep over "
        "sampling steps and η.\n\n"
        "- `best/…` are the scores of a training's best cell; `…/eta_…` are curves over the number of "
        "steps.\n"
        "- Hold trainings against each other by `diffctl compare RUN RUN`: it compares only what was "
        "measured by one protocol, and says which gaps are chance.\n"
        f"- The best model is `champion` of the registered model `diffctl-{data_name}`.\n"
    )


def registry_note() -> str:
    """What the experiment is that the registry keeps its moves in."""
    return (
        "Who became champion when: a run for each registered model, whose parameters are the moves that "
        "count. `diffctl history` reads them.\n\n"
        "**Delete nothing here**: a registry whose run is gone cannot be read.\n"
    )


def training_note(params: Tags, fingerprint: str) -> str:
    """What was trained on what, from params.yaml's values by dotted name, and how to use it."""

    def of(name: str) -> str:
        return params.get(name, "?")

    conditional = "class-conditional" if of("model.class_cond") == "True" else "unconditional"
    return (
        f"A {conditional} diffusion model of *{of('data.name')}*: {of('train.steps')} steps of "
        f"{of('train.batch_size')} images.\n\n"
        f"- **network**: {params.get('model.name', 'unet')}, {of('model.channels')} channels × "
        f"{of('model.channel_mult')}, {of('model.num_res_blocks')} blocks a level\n"
        f"- **process**: {of('process.schedule')} schedule, T = {of('process.timesteps')}, predicts "
        f"{of('process.prediction')}, variance {of('process.variance')}, loss {of('process.loss')}\n"
        f"- **training**: rate {of('train.lr.rate')}, EMA {of('train.ema_decay')}, "
        f"seed {of('train.seed')}\n\n"
        "Images of it:\n\n"
        f"    diffctl sample --run-id {fingerprint} --num 16 --out samples.png\n"
    )


def scores_note(document: ScoresDocument) -> str:
    """A table of the cells, the best one bold, and what their scores are of."""
    cells = sorted(document.cells.items(), key=lambda item: cell_order(item[1].axes))
    names, first, reference = score_names(document), cells[0][1], document.reference

    def row(name: str, cell: CellScores) -> list[str]:
        mark = "**" if name == document.best.cell else ""
        texts = [name, *(f"{cell.scores[score]:.4g}" for score in names)]
        return [f"{mark}{text}{mark}" for text in texts]

    return (
        f"\nThe best: {describe_selection(document.best)}.\n\n"
        f"{score_table(names, (row(*item) for item in cells))}\n\n"
        f"{first.num_images:,} images a cell against {reference.reference_count:,} of {reference.name} "
        f"({reference.reference_split}), extractor {document.extractor}.\n"
    )
