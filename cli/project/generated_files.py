"""The files of a new project as text: `diffctl init` writes them, and an upgrade compares with them."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from diffusion.layout import MARK, PACKAGE_DATA, PARAMS, PROFILES
from diffusion.system.files import write_text
from diffusion.system.params import edit_yaml, parse_yaml, read_mapping, read_params
from diffusion.system.section import Section, validate
from diffusion.version import VERSION

BASE = ".diffctl/base"  # the generated files as they were written, by their paths
TEMPLATES = PACKAGE_DATA / "project"
WORKFLOW, SKY, PYPROJECT = ".github/workflows/check.yaml", "sky.yaml", "pyproject.toml"
FILES = {  # by their names among the templates
    "gitignore": ".gitignore",
    "dvcignore": ".dvcignore",
    "pipeline.yaml": "dvc.yaml",  # DVC would read a dvc.yaml also in an installation
    "scores.json": ".dvc/plots/scores.json",
    "prefect.yaml": "prefect.yaml",
    "pyproject": PYPROJECT,
    "README.md": "README.md",
}
PLUGINS = {
    "data": "Data sets",
    "model": "Networks",
    "process": "Noise processes, predictions, time distributions, loss weights and objectives",
    "train": "Optimizers and learning-rate schedules",
    "sample": "Samplers, spacings and guidance rules",
    "evaluate": "Feature extractors",
    "edit": "Operators of measurements and methods of editing",
}
ENTRIES = '''"""The project's own entries: data sets, networks, samplers and more (`diffctl docs extending`).

Add them to the registries here, such as `SAMPLERS["mine"] = SamplerEntry("plugins.sample.mine:build")`. Write
their code in the folder of the section of params.yaml that selects them. Import only torch-free modules here:
every command imports this file.
"""
'''


class ProjectChoices(Section):
    """What decides the generated files, as .diffctl/project.yaml records it.

    `values` are set in the profile's text, by dotted keys of params.yaml. Without a profile params.yaml is
    the user's own, and `values` are those of its data. `kept` are files that the user had before.
    """

    version: str = VERSION
    name: Annotated[str, Field(max_length=200)] = "project"
    profile: str | None = "digits"
    values: dict[str, Any] = Field(default_factory=dict)
    github_actions: bool = False
    sky: bool = False
    kept: list[str] = Field(default_factory=list)


def generated_files(choices: ProjectChoices) -> dict[str, str]:
    """Return the text of each file of a project by its path, in the order of a reader's interest.

    The files of this version of diffctl are returned, whatever `choices.version` is. code.yaml, which depends
    on the plugins, and .diffctl/base are left out.
    """
    files, data = {}, {key.removeprefix("data."): value for key, value in choices.values.items()}
    if choices.profile is not None:
        params = (PROFILES / f"{choices.profile}.yaml").read_text(encoding="utf-8")
        for key, value in choices.values.items():
            params = edit_yaml(params, key.split("."), value)
        files, data = {str(PARAMS): params}, parse_yaml(params)["data"]
    words = {
        "version": VERSION,
        "source": _source(),
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", choices.name).strip("-._") or "project",
        "about": f"the pictures in `{data['path']}`" if data.get("path") else f"the data set {data['name']}",
    }
    files |= {path: _filled(template, words) for template, path in FILES.items()}
    if choices.github_actions:
        files[WORKFLOW] = _filled("workflow.yaml", words)
    if choices.sky:
        files[SKY] = _filled("sky.yaml", words)
    files["plugins/__init__.py"] = ENTRIES
    for name, what in PLUGINS.items():
        files[f"plugins/{name}/__init__.py"] = f'"""{what} of this project."""\n'
    files[str(MARK)] = mark_text(choices.model_copy(update={"version": VERSION}))
    files[".diffctl/.dvcignore"] = "*\n"
    return files


def mark_text(choices: ProjectChoices) -> str:
    """Return the text of .diffctl/project.yaml."""
    return yaml.safe_dump(choices.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def record_profile(profile: str) -> None:
    """Record, in a project, that params.yaml is now that profile, or the user's own for a file."""
    if not Path(BASE).is_dir():
        return  # a clone of diffctl
    choices, own = read_choices(Path()), Path(BASE) / PARAMS
    file = PROFILES / f"{profile}.yaml"
    if file.is_file():
        choices = choices.model_copy(update={"profile": profile, "values": {}})
        write_text(own, file.read_text(encoding="utf-8"))
    else:
        choices = with_own_params(choices, PARAMS)
        own.unlink(missing_ok=True)
    write_text(MARK, mark_text(choices))


def base_files(files: dict[str, str]) -> dict[str, str]:
    """Return the originals to keep in .diffctl/base, of the files that the user may edit, by their paths."""
    return {f"{BASE}/{path}": text for path, text in files.items() if not path.startswith(".diffctl/")}


def with_own_params(choices: ProjectChoices, params: Path) -> ProjectChoices:
    """Return the choices of a project with this params.yaml, which no profile replaces."""
    data = read_params(params)["data"]
    values = {f"data.{key}": data[key] for key in ("name", "path") if key in data}
    return choices.model_copy(update={"profile": None, "values": values})


def read_choices(root: Path) -> ProjectChoices:
    """Return the recorded choices of the project in `root`.

    FileNotFoundError without a record, DiffctlError for a damaged one.
    """
    return validate(ProjectChoices, read_mapping(root / MARK), str(MARK))


def is_from_file() -> bool:
    """Return whether diffctl was installed from a folder or a wheel, so that no other machine may have it."""
    recorded = _direct_url()
    return bool(recorded) and "vcs_info" not in recorded


def _source() -> str:
    """Return the end of a requirement of diffctl: its version, or the installed Git commit."""
    recorded = _direct_url()
    if vcs := recorded.get("vcs_info"):
        return f" @ {vcs['vcs']}+{recorded['url']}@{vcs['commit_id']}"
    return f"=={VERSION}"


def _direct_url() -> dict[str, Any]:
    """Return where diffctl was installed from (PEP 610); empty for a package index."""
    recorded: dict[str, Any] = json.loads(distribution("diffctl").read_text("direct_url.json") or "{}")
    return recorded


def _filled(template: str, words: dict[str, str]) -> str:
    """Return a template with each @word@ replaced."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
