"""The report's colours. Figures are drawn in the light ones; on the page they become CSS variables.

Any two lines are told apart by whoever sees no red, no green or no blue, too: tests/report/test_theme.py.
"""

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f5f7f9",
    "ink": "#17212b",
    "muted": "#55626f",
    "rule": "#d3dae1",
    "accent": "#0a5fa5",
    "line0": "#0b62a8",
    "line1": "#c2410d",
    "line2": "#0f766d",
    "line3": "#7832e6",
    "line4": "#a06e46",
    "line5": "#8c003c",
}
DARK = {
    "paper": "#12181f",
    "panel": "#1b232c",
    "ink": "#e6ebf0",
    "muted": "#a3b0bd",
    "rule": "#36424e",
    "accent": "#7cc0ff",
    "line0": "#6cb6ff",
    "line1": "#ff9a5c",
    "line2": "#4fd1c1",
    "line3": "#a06ebe",
    "line4": "#fac83c",
    "line5": "#f0648c",
}
LINES = [name for name in LIGHT if name.startswith("line")]
MARKERS = ["o", "s", "^", "D", "v", "P"]


def css_variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
