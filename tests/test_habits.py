"""Files for development: pre-commit hooks and the changelog."""

import re
import subprocess
import tomllib

import yaml

from diffusion.model.model_file import ModelDescription
from diffusion.protocol.grid import SAMPLING_VERSION
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TYPED = PROJECT["tool"]["mypy"]["files"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def test_mypy_hook_covers_all_typed_packages() -> None:
    (hook,) = (hook for hook in HOOKS if hook["id"] == "mypy")
    packages = [
        name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    assert set(packages) <= set(TYPED)
    assert all(re.search(hook["files"], f"{folder}/some/module.py") for folder in TYPED)


def test_hooks_run_all_checks_of_make_lint() -> None:
    lint = re.search(r"^lint:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    wanted = [line.strip().removeprefix("@$(BIN)/").removesuffix(" .") for line in lint[1].splitlines()]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in HOOKS]
    assert all(any(entry.startswith(command) for entry in entries) for command in wanted)


def test_changelog_has_the_current_versions_and_links_exist() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = PROJECT["project"]["version"]
    assert f"## {version}\n" in text
    assert f"ampling version {SAMPLING_VERSION}" in text
    assert f"model format {ModelDescription.model_fields['format'].default}" in text
    for page in ("CHANGELOG.md", "SECURITY.md", "docs/theory.md"):
        source = ROOT / page
        for link in re.findall(r"\]\(([\w./-]+)\)", source.read_text(encoding="utf-8")):
            assert (source.parent / link).exists(), link


def test_no_file_has_a_conflict_marker() -> None:
    found = subprocess.run(
        ["git", "grep", "-InE", "^(<<<<<<<|>>>>>>>)"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stdout or found.stderr
