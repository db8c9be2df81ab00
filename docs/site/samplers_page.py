"""The table of docs/samplers.md: results of `python -m benchmarks.solver_error`."""

from typing import Any

from docs.site.tables import with_part


def with_tables(markdown: str, results: dict[str, Any]) -> str:
    """Return the page with the table of these results between its marks."""
    return with_part(markdown, "errors", error_table(results, "cosine"))


def error_table(results: dict[str, Any], process: str) -> str:
    """Return the distances to the exact flow, a row per method with its best spacing at each NFE.

    The best of a column is bold.
    """
    spacings, columns = results["errors"][process], range(len(results["nfe"]))
    methods = [name for name, found in next(iter(spacings.values())).items() if "flow" in found]
    best = {
        method: [min((found[method]["flow"][at], name) for name, found in spacings.items()) for at in columns]
        for method in methods
    }
    winners = [min(best[method][at] for method in methods) for at in columns]
    lines = [
        f"| NFE, {process} process | {' | '.join(map(str, results['nfe']))} |",
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
