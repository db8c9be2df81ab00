"""`diffctl init`: the generated files, their place in Git and DVC, and settings for a folder of pictures."""

import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from cli.commands.project import Init
from cli.project import folder_settings
from cli.project.clones import UNFINISHED, edited_library_files, take_over
from cli.project.generated_files import ProjectChoices, generated_files, is_from_file, read_choices
from cli.shared.options import profile_names
from diffusion.check.timing import TimeRange
from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.system.errors import UsageError
from diffusion.system.params import parse_yaml
from tests.conftest import ROOT, diffctl, run_python
from tests.helpers.small import commit, git, own_code, small_project


@pytest.mark.parametrize("profile", profile_names())
def test_files_are_complete_valid_and_short(profile: str) -> None:
    files = generated_files(ProjectChoices(name="my cats", profile=profile, github_actions=True, sky=True))
    parse(parse_yaml(files["params.yaml"]), "params.yaml")
    assert sum(text.count("\n") for text in files.values()) < 400
    assert not [path for path, text in files.items() if re.search("@[a-z]+@", text)]
    for path in ("dvc.yaml", "prefect.yaml", "sky.yaml", ".github/workflows/check.yaml"):
        assert isinstance(yaml.safe_load(files[path]), dict)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert set(files[".gitignore"].splitlines()) - set(ignored) == {
        *files[".gitignore"].splitlines()[:2],
        "/params.schema.json",
    }


def folder_of_pictures(
    folder: Path, count: int, side: int, is_grey: bool, classes: int = 0, width: int | None = None
) -> Path:
    shape = (count, side, width or side + 2, 1 if is_grey else 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for number, pixels in enumerate(noise):
        path = folder / (str(number % classes) if classes else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "seconds", "values"),
    [
        ((90, 70, False), 0.02, {"image_size": 32, "channels": 3, "class_cond": False, "steps": 1900}),
        ((90, 20, True, 3), 0.02, {"image_size": 16, "channels": 1, "class_cond": True, "p_uncond": 0.1}),
        ((30, 8, True, 3), 99.0, {"image_size": 16, "class_cond": False, "steps": 3000}),
        ((9, 40, False), 0.02, {"batch_size": 7}),
        ((9, 40, False, 0, 60), 0.02, {"image_size": [32, 48]}),
        ((9, 90, True, 0, 20), 0.02, {"image_size": 16}),  # too long
        ((9, 12, True, 0, 24), 0.02, {"image_size": [16, 32]}),
    ],
)
def test_settings_follow_from_the_pictures(tmp_path, monkeypatch, made, seconds, values) -> None:
    monkeypatch.setattr(folder_settings, "time_steps", lambda *_: TimeRange(seconds, seconds, seconds))
    monkeypatch.setattr(folder_settings, "default_device", lambda: folder_settings.torch.device("cpu"))
    folder = folder_of_pictures(tmp_path / "cats", *made)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    choices, reasons = folder_settings.choose_settings(folder, "data/cats", ProjectChoices())
    config = parse(parse_yaml(generated_files(choices)["params.yaml"]), "params.yaml").model_dump(mode="json")
    found = config["model"] | config["train"] | config["data"]
    assert {name: found[name] for name in values} == values
    assert config["data"]["path"] == "data/cats"
    explained = {line.partition(":")[0] for line in reasons}
    assert explained >= choices.values.keys() - {"data.path", "train.p_uncond"}
    assert config["data"]["on_bad"] == "skip"


@pytest.mark.slow
def test_settings_for_captions_unequal_classes_and_a_list_of_labels(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_settings, "time_steps", lambda *_: TimeRange(2 / 64, 2 / 64, 2 / 64))
    monkeypatch.setattr(folder_settings, "default_device", lambda: folder_settings.torch.device("cuda"))
    monkeypatch.setattr(folder_settings, "MIN_STEPS", 10)
    folder = folder_of_pictures(tmp_path / "cats", 80, 16, is_grey=True)
    monkeypatch.chdir(folder)  # for `--data .`
    rows = [f"{number}.png,{'rare' if number < 21 else 'frequent'}" for number in range(80)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows, "100.png,rare"]))
    (folder / "captions").mkdir()
    for number in range(80):
        (folder / f"captions/{number}.txt").write_text("a cat")
    choices, reasons = folder_settings.choose_settings(folder, "data/cats", ProjectChoices())
    config = parse(parse_yaml(generated_files(choices)["params.yaml"]), "params.yaml")
    assert config.data.model_dump()["labels"] == "labels.csv"
    assert (config.model.class_cond, config.sample.classes) == (True, "data")
    assert (config.train.batch_size, config.train.steps, config.train.lr.warmup) == (64, 1800, 180)
    (skipped,) = [line for line in reasons if line.startswith("data.on_bad")]
    assert "1 missing (100.png); 80 not an image (captions/0.txt" in skipped


@pytest.mark.slow
def test_new_project_is_a_repository_and_keeps_existing_files(tmp_path: Path, capsys) -> None:
    (tmp_path / "README.md").write_text("mine")
    Init(folder=tmp_path, defaults=True).run()
    assert "kept, since they exist: README.md" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "# " in (tmp_path / ".diffctl/base/README.md").read_text()
    assert read_choices(tmp_path) == ProjectChoices(name=tmp_path.name, kept=["README.md"])
    assert git(tmp_path, "ls-files", "--others", "--exclude-standard").split() == ["README.md"]
    listed = ["dvc", "stage", "list", "--all", "--name-only"]  # those of .diffctl/base are ignored
    stages = subprocess.run([sys.executable, "-m", *listed], cwd=tmp_path, capture_output=True, text=True)
    assert stages.stdout.split() == ["code", "data", "reference", "train", "sample", "evaluate", "report"]
    with pytest.raises(UsageError, match="is a project of diffctl already"):
        Init(folder=tmp_path, defaults=True).run()
    commit(tmp_path, "begin")
    inner = tmp_path / "experiments/cats"
    with pytest.raises(UsageError, match="give --subdir"):
        Init(folder=inner, profile="cifar10").run()
    assert not inner.exists()
    Init(folder=inner, data=Path("cifar10"), subdir=True).run()
    assert read_choices(inner).profile == "cifar10"
    assert not (inner / ".git").exists()
    assert "experiments/cats/.dvc/config" in git(tmp_path, "diff", "--cached", "--name-only")


@pytest.mark.slow
def test_repository_with_modules_of_our_names_and_ignored_data_becomes_a_project(tmp_path: Path) -> None:
    names = ("cli.py", "diffusion.py", "tracking.py", "flows/__init__.py")
    (tmp_path / "flows").mkdir()
    for name in names:
        (tmp_path / name).write_text("raise RuntimeError('not the package of diffctl')\n")
    (tmp_path / ".gitignore").write_text("data/\n/runs/\n/params.schema.json\n__pycache__/\n")
    Init(folder=tmp_path, defaults=True).run()
    assert "plugins/data/__init__.py" in git(tmp_path, "ls-files").split()
    untracked = git(tmp_path, "ls-files", "--others", "--exclude-standard").split()
    assert untracked == sorted([".gitignore", *names])


def test_project_requires_the_commit_that_diffctl_was_installed_from(tmp_path: Path, monkeypatch) -> None:
    installed = {"url": "https://git.example/team/diffctl", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
    (folder := tmp_path / "diffctl-9.dist-info").mkdir()
    (folder / "METADATA").write_text("Name: diffctl\nVersion: 9\n")
    (folder / "direct_url.json").write_text(json.dumps({"url": "file:///wheels", "archive_info": {}}))
    monkeypatch.syspath_prepend(tmp_path)
    assert is_from_file()
    (folder / "direct_url.json").write_text(json.dumps(installed))
    assert not is_from_file()
    files = generated_files(ProjectChoices(sky=True, github_actions=True))
    wanted = f" @ git+https://git.example/team/diffctl@{'0' * 40}"
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["dependencies"] == [f"diffctl{wanted}"]
    assert Requirement(project["dependencies"][0]).url == wanted.removeprefix(" @ ")
    assert f"pip install 'diffctl[gpu,s3]{wanted}'" in files["sky.yaml"]
    assert f"pip install 'diffctl{wanted}'" in files[".github/workflows/check.yaml"]


def test_pytest_of_a_project_finds_its_plugins(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(generated_files(ProjectChoices())["pyproject.toml"])
    for name in ("plugins", "tests/plugins"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "plugins/__init__.py").write_text("MINE = 1\n")
    (tmp_path / "tests/plugins/test_mine.py").write_text(
        "from plugins import MINE\ndef test(): assert MINE\n"
    )
    done = run_python(tmp_path, "-P", "-m", "pytest", "-p", "no:cacheprovider", "tests/plugins")
    assert done.returncode == 0, done.stdout


def test_questions_are_for_terminals_and_names_are_checked(tmp_path: Path) -> None:
    idx = tmp_path / "idx"
    idx.mkdir()
    (tmp_path / "new/data").mkdir(parents=True)
    (idx / "t10k-labels-idx1-ubyte.gz").touch()
    for options, message in (
        ({}, "give --data FOLDER, --profile NAME, or --defaults"),
        ({"profile": "nope"}, "the profiles are cifar10"),
        ({"data": Path("nope")}, "is no folder and no data set with a profile"),
        ({"subdir": True}, "leave it out"),
        ({"data": tmp_path}, "contains data/prepared, .* such as data/images"),
        ({"data": tmp_path / "new/data"}, "contains data/prepared"),
        ({"data": idx}, "has IDX files and no pictures: .* --data fashion-mnist"),
    ):
        with pytest.raises(UsageError, match=message):
            Init(folder=tmp_path / "new", **options).run()
    assert [*(tmp_path / "new").iterdir()] == [tmp_path / "new/data"]


@pytest.mark.parametrize("remote", ["origin", "theirs"])
def test_edits_of_a_clone_are_found_without_an_upstream_and_in_new_files(tmp_path: Path, remote: str) -> None:
    upstream, clone = tmp_path / "upstream", tmp_path / "clone"
    (upstream / "diffusion").mkdir(parents=True)
    for name in ("x.py", "y.py"):
        (upstream / "diffusion" / name).write_text("a = 1\n")
    (upstream / ".gitignore").write_text("__pycache__/\n")
    git(upstream, "init", "--quiet", "--initial-branch", "main")
    commit(upstream, "begin")
    git(tmp_path, "clone", "--quiet", "--origin", remote, str(upstream), str(clone))
    (clone / "diffusion/__pycache__").mkdir()
    (clone / "diffusion/__pycache__/x.pyc").write_bytes(b"")
    (clone / "notes.txt").write_text("mine")
    assert edited_library_files(clone) == []
    git(clone, "checkout", "--quiet", "-b", "a-branch")
    (clone / "diffusion/x.py").write_text("a = 2\n")
    commit(clone, "edit")
    (clone / "diffusion/y.py").write_text("a = 2\n")
    (clone / "diffusion/z.py").write_text("a = 2\n")
    wanted = ["diffusion/x.py", "diffusion/y.py", "diffusion/z.py"]
    assert edited_library_files(clone) == wanted
    git(clone, "push", "--quiet", "--set-upstream", remote, "a-branch")
    assert edited_library_files(clone) == wanted


@pytest.mark.parametrize("has_links", [True, False])
def test_clone_is_taken_over_again_after_an_interruption(tmp_path, monkeypatch, has_links: bool) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, "on another disk")

    clone, root, cached = tmp_path / "clone", tmp_path / "project", Path(".dvc/cache/files/md5/ab/cd")
    (clone / cached).parent.mkdir(parents=True)
    (clone / cached).write_text("images")
    (clone / "params.yaml").write_text("data: {name: digits}\n")
    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    for _ in range(2):
        assert take_over(clone, root) == ["params.yaml", ".dvc/cache"]
    (root / UNFINISHED).unlink()
    with pytest.raises(UsageError, match=r"has params.yaml, \.dvc/cache, which --from-clone would replace"):
        take_over(clone, root)
    assert (root / cached).read_text() == "images"


@pytest.mark.slow
def test_clone_becomes_a_project_without_its_code(tmp_path: Path, capsys) -> None:
    """Data, plugins, runs and the lock are taken over; edits of the library are not lost silently."""
    clone, root = small_project(tmp_path / "clone", train={"seed": 7}), tmp_path / "project"
    env = own_code(clone) | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = run_python(clone, "-m", "dvc", "repro", "data", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(sqlite3.connect(clone / "mlflow.db")) as database:
        database.execute("CREATE TABLE kept (value)")
        database.commit()
    (clone / "plugins/sample/mine.py").write_text("MINE = 1\n")
    losses = clone / "diffusion/process/losses.py"
    losses.write_text(losses.read_text() + "\nEDITED = True\n")

    with pytest.raises(UsageError, match=r"edits of the library \(diffusion/process/losses.py\)"):
        Init(folder=root, from_clone=clone).run()
    assert not root.exists()
    Init(folder=root, from_clone=clone, ignore_edits=True).run()
    assert "taken from" in capsys.readouterr().out
    assert "seed: 7" in (root / "params.yaml").read_text()
    assert (root / "plugins/sample/mine.py").read_text() == "MINE = 1\n"
    assert not (root / "diffusion").exists()
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchone() == ("kept",)
    stale = diffctl(root, "stage", "data")
    assert (stale.returncode, len(open_store(root / "data/prepared/train"))) == (0, 1297)
    assert read_choices(root).profile is None
    assert diffctl(root, "upgrade").stdout.startswith("the project is up to date")
