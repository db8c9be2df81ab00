"""The figures of `diffctl show`."""

import shutil

from cli.images.image_commands import FigureOptions, ModelFigure, ReverseFigure, SamplersFigure, StepsFigure
from cli.models.model_choice import given_options, selected_config, selected_model, selected_source
from cli.shared.options import ProfileOptions
from diffusion.check.findings import Project
from diffusion.model.model_file import read_artefact
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.resolution import resolve_settings
from diffusion.report.figure_base import as_png, svg_file
from diffusion.sample.conditions import image_condition
from diffusion.show import network_table, reverse, sampler_paths, step_spacing
from diffusion.show.figure import FigureData
from diffusion.system.devices import default_device
from diffusion.system.output_paths import write_output
from diffusion.train.plan import plan_training, resolve_process
from tracking.recipes import find_settings, recipe_of

WIDEST, NARROWEST = 120, 72  # characters of a line


def show_steps(options: StepsFigure) -> None:
    write_figure(step_spacing.steps(selected_process(options), options.count), options)


def show_reverse(options: ReverseFigure) -> None:
    source, given, device = selected_source(options), given_options(options.sampling), default_device()
    settings = find_settings(source, given, best_cell=False).settings
    loaded, guides = recipe_of(source, settings, given).load(device)
    condition = image_condition(loaded, settings, [options.index], guides, options.klass)
    write_figure(reverse.reverse(loaded, settings, options.index, condition, device, guides), options)


def show_model(options: ModelFigure) -> None:
    if options.names_model:
        network = read_artefact(selected_model(options)).network
    else:
        project = Project(selected_config(options))
        network = plan_training(project.config, project.train_meta(), default_device()).network
    write_figure(network_table.model(network), options)


def show_samplers(options: SamplersFigure) -> None:
    process = selected_process(options)
    spacing = resolve_settings(process.schedule, given_options(options.sampling)).settings.spacing
    write_figure(sampler_paths.samplers(process, options.count, spacing, seed=options.seed), options)


def selected_process(options: ProfileOptions) -> ProcessConfig:
    """Return the process of the named model, or else of the configuration."""
    if options.names_model:
        return read_artefact(selected_model(options)).process
    config = selected_config(options)
    return resolve_process(config.process, Project(config).train_meta())


def write_figure(shown: FigureData, options: FigureOptions) -> None:
    """Write the figure to its file, if one is named, and print it or its file."""
    if (out := options.out) is not None:
        drawn = shown.draw()
        data = as_png(drawn) if out.suffix == ".png" else svg_file(drawn, shown.title)
        write_output(out, lambda file: file.write(data))
        return options.answer({"out": out, "title": shown.title}, f"{shown.title}: {out}")
    columns = shutil.get_terminal_size((80, 24)).columns
    options.answer(shown.values(), "\n".join(shown.lines(min(WIDEST, max(NARROWEST, columns)))).rstrip())
