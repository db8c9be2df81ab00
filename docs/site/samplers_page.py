"""The tables of docs/samplers.md: errors of `python -m benchmarks.solver_error`."""

from typing import Any

BEGIN, END = "<!-- errors -->", "<!-- /errors -->"
TITLES = {"flow": "Distance to the exact flow", "data": "Distance to the data"}


def with_tables(markdown: str, results: dict[str, Any]) -> str:
    """Return the page with the tables of these results between its marks."""
    before, _, rest = markdown.partition(BEGIN)
    after = rest.partition(END)[2]
    text = "\n\n".join(error_table(results, "cosine", error) for error in TITLES)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def error_table(results: dict[str, Any], process: str, error: str) -> str:
    """Return a row per method with its best spacing at each NFE; the best of a column is bold."""
    spacings, columns = results["errors"][process], range(len(results["nfe"]))
    methods = [name for name, found in next(iter(spacings.values())).items() if error in found]
    best = {
        method: [min((found[method][error][at], name) for name, found in spacings.items()) for at in columns]
        for method in methods
    }
    winners = [min(best[method][at] for method in methods) for at in columns]
    floor = "" if error == "flow" else f" The ends of the exact flow have {results['floor']:g}."
    lines = [
        f"**{TITLES[error]}, {process} process.**{floor}",
        "",
        f"| NFE | {' | '.join(map(str, results['nfe']))} |",
        f"|{' --- |' * (len(columns) + 1)}",
    ]
    for method, row in best.items():
        cells = (_cell(*one, one == winner) for one, winner in zip(row, winners, strict=True))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float, spacing: str, is_best: bool) -> str:
    """Return the value with the first letter of its spacing."""
    number = f"{value:.2g}"
    return f"**{number}** {spacing[0]}" if is_best else f"{number} {spacing[0]}"
