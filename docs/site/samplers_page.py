"""The tables of docs/samplers.md: results of `python -m benchmarks.solver_error` and `trained_samplers`."""

from typing import Any

from docs.site.tables import with_part


def with_tables(markdown: str, results: dict[str, Any]) -> str:
    """Return the page with the table of these results between its marks."""
    return with_part(markdown, "errors", error_table(results, "cosine"))


def with_trained_table(markdown: str, results: dict[str, Any]) -> str:
    """Return the page with the table of a trained model's distances between its marks."""
    return with_part(markdown, "trained", trained_table(results))


def trained_table(results: dict[str, Any]) -> str:
    """Return Fréchet and kernel distance, the latter times 1,000: a row per spacing and method.

    The best Fréchet distance of a column is bold, and so are those whose interval contains it.
    """
    nfes, scores = results["nfe"], results["scores"]
    fd, kd = (f"{kind}_effnet_lite0_64" for kind in ("fd", "kd"))
    rows = {(spacing, method): row for spacing, found in scores.items() for method, row in found.items()}
    best = [min(row[at][fd] for row in rows.values()) for at in range(len(nfes))]
    lines = [f"| NFE | | {' | '.join(map(str, nfes))} |", f"|{' --- |' * (len(nfes) + 2)}"]
    for (spacing, method), row in rows.items():
        cells = []
        for one, lowest in zip(row, best, strict=True):
            text = f"{one[fd]:.0f} ± {(one[f'{fd}_high'] - one[f'{fd}_low']) / 2:.0f}"
            text = f"**{text}**" if one[f"{fd}_low"] <= lowest else text
            cells.append(f"{text}; {1000 * one[kd]:.0f}")
        lines.append(f"| {method} | {spacing} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
