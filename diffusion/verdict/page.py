"""A verdict as an HTML page: one file that needs no network, with one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from diffusion.check.cost_estimate import format_duration
from diffusion.report.figure_base import as_svg, figure_style, line_colour, new_figure
from diffusion.report.theme import LIGHT, render
from diffusion.verdict.outcome import Outcome, TrainingOutcome

TEMPLATE = Path(__file__).with_name("verdict.html.j2")
PANEL = 2.6  # inches, the height of a change's panel
SHIFT = 0.12  # pairs, by which means are drawn to the right of a pair's dot
MARGIN = 0.15  # of the vertical range, above and below


def render_verdict(values: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return the page of a verdict; `values` are those of its JSON."""
    seconds = values["seconds"]
    shown = [one for one in outcomes if not one.failure]
    return render(
        TEMPLATE,
        verdict=values,
        took=None if seconds is None else format_duration(seconds),
        changes=[
            {
                "name": one.name,
                "kind": one.kind,
                "sentence": one.sentence(),
                "differences": one.differences,
                "notes": [] if one.failure else [*one.disagreements(), *one.warnings()],
                "pairs": [_row(pair, values["metric"]) for pair in one.pairs_json()],
            }
            for one in outcomes
        ],
        picture=draw_outcomes(shown, values["metric"]) if shown else "",
    )


def _row(pair: dict[str, Any], metric: str) -> dict[str, str]:
    control, change = pair["control"][metric], pair["change"][metric]
    numbers = {"control": control, "change": change, "gap": change - control}
    return {"seed": str(pair["seed"]), **{name: f"{value:.4g}" for name, value in numbers.items()}}


@figure_style()
def draw_outcomes(outcomes: Sequence[Outcome], metric: str) -> str:
    """Draw a panel for each change: its pairs, and the running mean with its interval."""
    figure = new_figure(PANEL * len(outcomes) + 0.2)
    panels = figure.subplots(len(outcomes), 1, squeeze=False)[:, 0]
    for axes, one in zip(panels, outcomes, strict=True):
        _draw(axes, one, metric)
        axes.set_title(f"{one.name}: {one.kind}".replace("$", r"\$"), fontsize=10, loc="left")
        axes.set_ylabel(f"Δ {metric}")
    label = "pairs" if isinstance(outcomes[0], TrainingOutcome) else "one pair of samples"
    panels[-1].set_xlabel(label)
    title = escape(f"Differences of {metric}, change minus control, with the running confidence interval")
    return as_svg(figure, "verdict", str(title))


def _draw(axes: Axes, one: Outcome, metric: str) -> None:
    """Draw the differences; below zero the change is better."""
    axes.axhline(0, color=LIGHT["ink"], linewidth=1)
    colour, found = line_colour(0), one.main
    if not isinstance(one, TrainingOutcome):
        axes.errorbar([1], [found.mean], [found.half], fmt="o", color=colour, capsize=4)
        axes.set_xticks([])
        return
    values = one.differences_of(metric)
    looks = [look for look in one.test.running(values) if look.pairs >= one.test.first]
    axes.plot(range(1, len(values) + 1), values, "o", color=LIGHT["muted"], markersize=4, label="a pair")
    if looks:
        x, mean, half = zip(*((look.pairs + SHIFT, look.mean, look.half) for look in looks), strict=True)
        style = {"color": colour, "markersize": 4, "capsize": 3, "label": "mean so far, with its interval"}
        axes.errorbar(x, mean, half, fmt="s-", **style)  # type: ignore[arg-type]
    ends = [*values, 0.0, *(found.interval or ())]
    room = MARGIN * (max(ends) - min(ends)) or 1.0
    axes.set_ylim(min(ends) - room, max(ends) + room)  # early intervals may be many times wider
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
