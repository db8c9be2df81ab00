"""The installed packages of diffctl: whether another distribution or folder has one of the same name."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffctl", "diffusion", "tracking", "flows", "serving", "cli")
REMEDY = "install diffctl in an environment of its own (`python -m venv`, pipx or uv)"


@cache
def check_packages() -> None:
    """Raise ImportError if a package of diffctl would be imported from elsewhere. It imports none."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            found = "a folder without code" if spec else "nothing"
        elif Path(spec.origin).parents[1].resolve() == ROOT.resolve():
            continue
        else:
            found = spec.origin
        others = ", ".join(other_distributions().get(name, ())) or "not an installed distribution"
        raise ImportError(f"the package {name} of diffctl is {found} ({others}) instead of {ROOT}: {REMEDY}")


def other_distributions() -> dict[str, list[str]]:
    """Return the other installed distributions that provide packages of diffctl, by the package."""
    from importlib.metadata import packages_distributions  # slow: it reads every distribution's files

    names = packages_distributions()
    found = {name: sorted({*names.get(name, ())} - {"diffctl"}) for name in PACKAGES}
    return {name: others for name, others in found.items() if others}
