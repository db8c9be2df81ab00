"""The figures of `diffctl show`."""

import shutil
from pathlib import Path

import typer

from cli.actions.model_choice import selected_config, selected_files, selected_model, selected_process
from cli.commands import show as commands
from cli.commands.show import FigureOptions
from cli.shared.options import ProfileOptions
from cli.shared.progress import progress
from cli.shared.sampling_options import refuse_idle_options
from diffusion.analysis.image_inputs import input_condition, known_labels, open_matching_store
from diffusion.check.findings import Project
from diffusion.images.pictures import read_picture
from diffusion.images.store import Images, open_store
from diffusion.layout import PREPARED
from diffusion.model.model_file import load_model, read_artefact
from diffusion.model.network_registry import NetworkSpec
from diffusion.protocol.settings import parse_settings
from diffusion.report.figure_base import as_png, svg_file
from diffusion.sample.class_labels import chosen_condition
from diffusion.sample.network_files import load_guides
from diffusion.show.figure import FigureData
from diffusion.show.forward import forward as forward_figure
from diffusion.show.network_table import model as model_figure
from diffusion.show.reverse import reverse as reverse_figure
from diffusion.show.sampler_paths import samplers as samplers_figure
from diffusion.show.step_spacing import steps as steps_figure
from diffusion.show.variance import learned_variance, make_grid, variance_bounds
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output
from diffusion.train.plan import plan_training


def show_forward(options: commands.Forward) -> None:
    """Carry out `diffctl show forward`."""
    is_file = options.image is not None and not options.image.isdecimal()
    options.refuse_idle("store", is_file, "where the image is a file")
    shown = forward_figure(selected_process(options), _image(options.image, options.store), options.seed)
    if not shown.noised:
        typer.echo("no data is prepared, so no image is shown: `diffctl stage data`, or --image", err=True)
    write_figure(shown, options)


def show_steps(options: commands.ShowSteps) -> None:
    """Carry out `diffctl show steps`."""
    write_figure(steps_figure(selected_process(options), options.count), options)


def show_variance(options: commands.Variance) -> None:
    """Carry out `diffctl show variance`."""
    if not options.names_model and options.profile is not None:
        for name in ("store", "num", "seed"):
            options.refuse_idle(name, True, "with --profile, which names no model")
        grid = make_grid(selected_process(options), options.count, options.spacing.value)
        return write_figure(variance_bounds(grid), options)
    loaded = load_model(selected_model(options), default_device())
    grid = make_grid(loaded.artefact.process, options.count, options.spacing.value)
    images = open_matching_store(options.store, loaded.artefact)
    indices = range(min(options.num, len(images)))
    condition = input_condition(loaded.artefact, known_labels(images, loaded.artefact, indices), None)
    with progress("variance", unit="passes") as show:
        shown = learned_variance(loaded, grid, images.images[: len(indices)], condition, options.seed, show)
    write_figure(shown, options)


def show_reverse(options: commands.Reverse) -> None:
    """Carry out `diffctl show reverse`."""
    refuse_idle_options(options.sampling)
    settings = parse_settings(options.sampling)
    path, device = selected_model(options), default_device()
    loaded, guides = load_model(path, device), load_guides(selected_files(options, settings, path), device)
    condition = chosen_condition(guides.labelled(loaded), settings, [options.index], options.klass)
    write_figure(reverse_figure(loaded, settings, options.index, condition, device, guides), options)


def show_model(options: commands.Network) -> None:
    """Carry out `diffctl show model`."""
    write_figure(model_figure(_spec(options)), options)


def show_samplers(options: commands.Samplers) -> None:
    """Carry out `diffctl show samplers`."""
    process = selected_process(options)
    write_figure(samplers_figure(process, options.count, options.spacing.value, seed=options.seed), options)


WIDEST, NARROWEST = 120, 72  # characters of a line


def _image(name: str | None, store: Path | None) -> Images | None:
    """Return the image (H, W, C) of a file or number; None if neither is given and no data is prepared."""
    if name is not None and not name.isdecimal():
        picture = read_picture(Path(name), None, 3)
        is_grey = bool((picture == picture[:, :, :1]).all())
        return picture[:, :, :1] if is_grey else picture
    if name is None and store is None and not (PREPARED / "test").is_dir():
        return None
    opened = open_store(store or PREPARED / "test")
    number = int((name or "0")[:18])
    if number >= len(opened):
        raise UsageError(f"no image {number} in {opened.path}: give 0 to {len(opened) - 1}")
    image: Images = opened.images[number]
    return image


def _spec(options: ProfileOptions) -> NetworkSpec:
    """Return the network of a model, or the one that a configuration trains."""
    if options.names_model:
        return read_artefact(selected_model(options)).network
    project = Project(selected_config(options))
    return plan_training(project.config, project.train_meta(), default_device()).network


def write_figure(shown: FigureData, options: FigureOptions) -> None:
    """Write the figure to its file, if one is named, and print it or its file."""
    if (out := options.out) is not None:
        drawn = shown.draw()
        data = as_png(drawn) if out.suffix == ".png" else svg_file(drawn, shown.title)
        write_output(out, lambda file: file.write(data))
        return options.answer({"out": out, "title": shown.title}, f"{shown.title}: {out}")
    columns = shutil.get_terminal_size((80, 24)).columns
    options.answer(shown.values(), "\n".join(shown.lines(min(WIDEST, max(NARROWEST, columns)))).rstrip())
