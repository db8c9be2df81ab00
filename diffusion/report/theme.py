"""The report's colours. Figures are drawn in the light ones; on the page they become CSS variables."""

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
    "line3": "#7c3aec",
    "line4": "#94620a",
    "line5": "#be185c",
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
    "line3": "#b9a0ff",
    "line4": "#e3b84a",
    "line5": "#ff85b3",
}
LINES = [name for name in LIGHT if name.startswith("line")]
MARKERS = ["o", "s", "^", "D", "v", "P"]


def css_variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
