"""`diffctl upgrade`: generated files of an older version, with the user's edits, become those of this one."""

import json
from pathlib import Path

import pytest

from cli.commands.project import Init
from cli.project.generated_files import BASE, read_choices
from cli.project.upgrade_plan import plan_upgrade
from diffusion.layout import MARK
from diffusion.system.errors import DiffctlError
from diffusion.version import VERSION
from tests.conftest import diffctl
from tests.helpers.invoke import Invoke
from tests.helpers.small import commit, git

OLD, NEW = "a\nb\nc\n", "a\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("mine", "base", "new", "wanted"),
    [
        (None, None, NEW, ("new", NEW)),
        (None, OLD, NEW, None),
        (OLD, OLD, NEW, ("replaced", NEW)),
        (NEW, OLD, NEW, None),
        ("x\nb\nc\n", OLD, OLD, None),
        ("x\nb\nc\n", OLD, NEW, ("merged", "x\nb\nc\nd\n")),
        ("a\nb\nc\ne\n", OLD, NEW, ("conflicts", "<<<<<<< yours\ne\n=======\nd\n>>>>>>> this version\n")),
        ("x\n", None, NEW, ("kept", None)),
        (OLD, OLD, None, ("removed", None)),
        ("x\n", OLD, None, ("kept", None)),
    ],
)
def test_each_file_is_merged_with_its_original(tmp_path: Path, mine, base, new, wanted) -> None:
    for folder, text in ((tmp_path, mine), (tmp_path / BASE, base)):
        folder.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (folder / "file").write_text(text)
    found = plan_upgrade(tmp_path, {} if new is None else {"file": new})
    assert len(found) == (wanted is not None)
    for change in found:
        assert change.action == wanted[0]
        assert (change.text or "").endswith(wanted[1] or "")


def test_a_file_that_the_user_had_before_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / BASE).mkdir(parents=True)
    for path, text in (("file", "mine\n"), (f"{BASE}/file", OLD)):
        (tmp_path / path).write_text(text)
    assert plan_upgrade(tmp_path, {"file": OLD}, ["file"]) == []
    (change,) = plan_upgrade(tmp_path, {"file": NEW}, ["file"])
    assert (change.action, change.text) == ("kept", None)
    (tmp_path / "file").write_text(OLD)  # the user has taken diffctl's
    assert [one.action for one in plan_upgrade(tmp_path, {"file": NEW}, ["file"])] == ["replaced"]


def test_files_that_are_not_utf8_or_yaml_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("é".encode("latin-1"))
    with pytest.raises(DiffctlError, match=r"file is not text in UTF-8 .* save it in UTF-8"):
        plan_upgrade(tmp_path, {"file": NEW})
    mark = tmp_path / MARK
    mark.parent.mkdir()
    for content, message in (
        (b"\xe9", "not text in UTF-8"),
        (b"a: [", "not readable as YAML"),
        (b"a: 1", "a: "),
    ):
        mark.write_bytes(content)
        with pytest.raises(DiffctlError, match=f"project.yaml.* {message}"):
            read_choices(tmp_path)


def replace(file: Path, old: str, new: str) -> None:
    """Replace a part of a file."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.slow
def test_project_of_an_older_version_is_upgraded_with_its_edits(tmp_path: Path) -> None:
    Init(folder=tmp_path, profile="digits").run()
    replace(tmp_path / MARK, VERSION, "0.1.0")
    (finding,) = [
        one for one in json.loads(diffctl(tmp_path, "check", "--json").stdout) if one["subject"] == "project"
    ]
    assert (finding["level"], "0.1.0" in finding["message"]) == ("warning", True)
    for folder in (tmp_path, tmp_path / BASE):  # as an older version generated them
        replace(folder / "params.yaml", "lr: {schedule: cosine", "lr: {schedule: constant")
        replace(folder / "dvc.yaml", "Score every cell", "Rate every cell")
        replace(folder / "prefect.yaml", "0 2 * * *", "0 3 * * *")
    replace(tmp_path / "params.yaml", "steps: 1200", "steps: 7")
    replace(tmp_path / "prefect.yaml", "0 3 * * *", "0 4 * * *")
    commit(tmp_path, "an older project")

    planned = diffctl(tmp_path, "upgrade", "--dry-run")
    assert (planned.returncode, git(tmp_path, "status", "--porcelain")) == (0, "")
    (tmp_path / "dvc.yaml").write_text("mine")
    assert "dvc.yaml: conflicts" in diffctl(tmp_path, "upgrade", "--dry-run").stdout
    assert "commit dvc.yaml" in diffctl(tmp_path, "upgrade").stderr
    git(tmp_path, "checkout", "dvc.yaml")
    done = diffctl(tmp_path, "upgrade")
    words = [line.split()[:2] for line in done.stdout.splitlines()]
    assert words == [["dvc.yaml:", "replaced"], ["params.yaml:", "merged"], ["prefect.yaml:", "conflicts"]]
    assert planned.stdout.startswith(done.stdout)
    assert (done.returncode, "prefect.yaml" in done.stderr) == (1, True)
    assert "lr: {schedule: cosine" in (tmp_path / "params.yaml").read_text()
    assert "steps: 7" in (tmp_path / "params.yaml").read_text()
    assert (tmp_path / "prefect.yaml").read_text().count("<<<<<<< yours") == 1
    assert VERSION in (tmp_path / MARK).read_text()
    commit(tmp_path, "upgraded")
    (tmp_path / "prefect.yaml").write_text((tmp_path / BASE / "prefect.yaml").read_text())
    assert diffctl(tmp_path, "upgrade").stdout == f"the project is up to date with diffctl {VERSION}\n"


@pytest.mark.slow
def test_project_without_a_mark_keeps_its_own_params(project: Path, invoke: Invoke) -> None:
    (project / MARK).unlink()
    (project / "dvc.yaml").write_text("stages: {}\n")
    params = (project / "params.yaml").read_text()
    assert invoke("upgrade").code == 0
    choices = read_choices(project)
    assert (choices.profile, choices.values) == (None, {"data.name": "digits"})
    assert (project / "params.yaml").read_text() == params
    assert not (project / BASE / "params.yaml").exists()
