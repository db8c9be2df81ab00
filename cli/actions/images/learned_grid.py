"""The times of few steps, learned for a model."""

from pydantic import TypeAdapter, ValidationError

from cli.actions.model_choice import given_options, selected_model
from cli.commands.models import Grid
from cli.shared.console import progress
from diffusion.analysis.learned_times import learned_levels, teacher_settings
from diffusion.layout import check_output_file
from diffusion.model.model_file import load_model
from diffusion.protocol.learned_grid import LearnedGrids
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import write_output_text
from diffusion.system.section import Steps


def learn_grid(options: Grid) -> None:
    wanted, out = _step_counts(options.steps), options.out
    check_output_file(out, "--out")
    loaded = load_model(selected_model(options), default_device())
    settings = teacher_settings(loaded.artefact.process, **given_options(options.sampling))
    with progress("grid", unit="trajectories") as show:
        on_batch = lambda done, total: show(done, total, "")  # noqa: E731
        levels = learned_levels(loaded, settings, wanted, options.num, options.batch_size, on_batch)
    learned = {"method": "GITS, 2405.11326", "trajectories": options.num, "guidance": settings.guidance}
    made = LearnedGrids(
        model_sha256=loaded.artefact.model_sha256,
        learned={**learned, "seed": settings.seed, "clip": settings.clip},
        levels={steps: tuple(values) for steps, values in levels.items()},
    )
    write_output_text(out, made.model_dump_json(indent=2) + "\n")
    lines = [
        f"{steps} steps: σ/α {', '.join(f'{one:g}' for one in values)}" for steps, values in levels.items()
    ]
    use = f"params.yaml takes them by\nsample:\n  spacing: learned\n  spacing_options: {{file: {out}}}"
    options.answer({"out": out, **made.model_dump(mode="json")}, "\n".join([*lines, f"{out}: {use}"]))


def _step_counts(text: str) -> list[int]:
    """Parse numbers of steps without duplicates, in order; UsageError if one is invalid."""
    try:
        return sorted(set(TypeAdapter(list[Steps]).validate_python(text.split(","))))
    except ValidationError:
        raise UsageError(
            f"--steps {printable(text)}: give numbers of steps with commas, such as 4,6,8"
        ) from None
