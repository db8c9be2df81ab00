"""Trials of settings: `diffctl search` and `verdict`."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from cli.shared.command import CommandOptions, argument, command, option, out_option
from cli.shared.options import JsonOptions, RayOptions
from diffusion.system.errors import UsageError, printable

search_app, verdict_app = typer.Typer(), typer.Typer()

MAX_PAIRS = 50
PAIRS = 3, 12  # by default
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@command(search_app, "cli.actions.trials.trial_search:search_settings", "checking the points of the search")
class Search(JsonOptions, RayOptions):
    """Search hyperparameters: train and score every point of `search` in params.yaml.

    The models, samples and metrics of the project do not change. The same command resumes an interrupted
    search.
    """

    address: str | None = argument(
        "With --ray: the cluster. [default: sample.address, RAY_ADDRESS, or a local Ray]"
    )
    name: str = option("The name of the search, stored in runs/search/NAME.", default="search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address and not self.ray:
            raise UsageError("ADDRESS needs --ray: add it, or leave it out")
        if find_spec("optuna") is None:
            raise UsageError("a search needs Optuna: pip install 'diffctl[search]'")


@command(search_app, "cli.actions.trials.trial_process:run_trial", name="search-trial", hidden=True)
class SearchTrial(CommandOptions):
    """Run one trial; `diffctl search` and `diffctl verdict` start these processes."""

    folder: Path = argument()
    local: bool = option("Sample in this process, whatever sample.runner is.")


@command(verdict_app, "cli.actions.trials.verdict:judge_changes", "checking the changes")
class Verdict(JsonOptions, RayOptions):
    """Judge whether a change of params.yaml makes the model better.

    Trains with and without it, in pairs of equal seeds, until a sequential test decides at an error of 5%, or
    the pairs or the budget end. A change of the sampling alone needs no training. The same command resumes an
    interrupted verdict. The project's model, samples and metrics do not change.

    Example: diffctl verdict train.lr.rate=0.001 --budget 20m --html verdict.html
    """

    changes: list[str] | None = argument(
        "KEY=VALUE, as for `diffctl set`: all of one change. FILE or profile: each is a change.",
        metavar="CHANGE",
        paths=True,
    )
    against: str | None = option(
        "The control: a file or profile. [default: params.yaml]", metavar="FILE", paths=True
    )
    each: bool = option("Every KEY=VALUE is a change by itself.")
    pairs: str | None = option(
        "Pairs of trainings: decide after A at least, B at most. [default: 3..12]", metavar="A..B"
    )
    equal: Literal["steps", "time", "flops"] = option(
        "What is equal in both trainings of a pair. For time and flops the steps of the change follow.",
        default="steps",
    )
    budget: str | None = option(
        "Start no pair that would end after this time, such as 20m or 2h.", metavar="TIME"
    )
    metric: Literal["fd", "kd", "loss"] = option(
        "The score: Fréchet or kernel distance, or the validation loss.", default="fd"
    )
    cell: str | None = option(
        "The cell of the sweep that is scored. [default: the most steps]", metavar="NAME"
    )
    stratified: bool = option("Train both with process.stratified, which makes trainings differ less.")
    html: Path | None = out_option("Also write a page with a picture.", kind=".html", flags=("--html",))
    seeds_apart: bool = option("Judge other seeds of the same settings.", hidden=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray and self.equal == "time":
            raise UsageError(
                "--equal time is measured on this machine: leave --ray out, or use --equal flops"
            )
        if self.metric == "loss" and self.cell:
            raise UsageError("--cell has no effect on --metric loss: leave it out")
        if not (self.changes or self.against or self.seeds_apart):
            raise UsageError(
                "there is nothing to judge: give a CHANGE such as train.lr.rate=0.001, or --against"
            )
        first, last = self.looks
        if not 2 <= first <= last <= MAX_PAIRS:
            raise UsageError(f"--pairs {self.pairs}: give A..B with 2 ≤ A ≤ B ≤ {MAX_PAIRS}")
        _ = self.seconds

    @property
    def looks(self) -> tuple[int, int]:
        """The numbers of pairs at the first and the last look; UsageError for another text."""
        if self.pairs is None:
            return PAIRS
        found = re.fullmatch(r"(\d{1,3})\.\.(\d{1,3})", self.pairs)
        if found is None:
            raise UsageError(f"--pairs {printable(self.pairs)}: give A..B, such as 3..12")
        return int(found[1]), int(found[2])

    @property
    def seconds(self) -> float | None:
        """The budget in seconds, None without one; UsageError for another text."""
        if self.budget is None:
            return None
        found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh])", self.budget)
        if found is None:
            raise UsageError(f"--budget {printable(self.budget)}: give a time such as 90s, 20m or 2h")
        return float(found[1]) * UNITS[found[2]]
