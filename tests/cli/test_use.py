"""`diffctl use`: params.yaml becomes a profile, gets pinned initial weights, or follows a paper."""

import json
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from cli.commands.pipeline import Use
from cli.project.generated_files import BASE, ProjectChoices, mark_text, read_choices
from diffusion.check.params_changes import adopt_protocol
from diffusion.config import Config, load, parse
from diffusion.layout import MARK, PARAMS
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.params import REMOVED, parse_yaml
from tests.conftest import ROOT, command, diffctl, params, write_params
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.prepared import copy_data
from tests.helpers.small import commit, git

PROFILES = ROOT / "profiles"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A committed project at the digits profile, as the working directory."""
    shutil.copytree(PROFILES, tmp_path / "profiles")
    shutil.copy(PROFILES / "digits.yaml", tmp_path / "params.yaml")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "begin")
    return tmp_path


def edit(folder: Path) -> str:
    text = (folder / "params.yaml").read_text() + "\n# mine\n"
    (folder / "params.yaml").write_text(text)
    return text


def test_the_new_profile_is_recorded_for_upgrades(folder: Path) -> None:
    (base := folder / BASE / PARAMS).parent.mkdir(parents=True)
    base.write_text((folder / PARAMS).read_text())
    (folder / MARK).write_text(mark_text(ProjectChoices(version="0.1.0", values={"train.steps": 7})))
    Use(profile="fashion-mnist").run()
    assert read_choices(folder) == ProjectChoices(version="0.1.0", profile="fashion-mnist")
    assert base.read_text() == (folder / PARAMS).read_text()
    write_params(folder / "profiles")
    Use(profile="profiles/params.yaml", force=True).run()
    assert (read_choices(folder).profile, base.exists()) == (None, False)


def test_params_become_the_profile_but_edits_are_kept_unless_forced(folder: Path, invoke: Invoke) -> None:
    edited = edit(folder)
    assert_refused(invoke("use", "fashion-mnist"), "params.yaml has edits")
    assert (folder / "params.yaml").read_text() == edited
    Use(profile="fashion-mnist", force=True).run()
    assert (folder / "params.yaml").read_text() == (PROFILES / "fashion-mnist.yaml").read_text()


def test_committed_edits_and_edits_in_a_named_file_are_saved(folder: Path) -> None:
    mine = folder / "mine.yaml"
    mine.write_text(edit(folder))
    Use(profile="mine.yaml").run()
    assert (folder / "params.yaml").read_text() == mine.read_text()
    commit(folder, "slower")
    Use(profile="fashion-mnist").run()


def test_works_without_git_and_without_params(folder: Path) -> None:
    shutil.rmtree(folder / ".git")
    Use(profile="fashion-mnist").run()
    (folder / "params.yaml").unlink()
    Use(profile="digits").run()
    edit(folder)
    with pytest.raises(UsageError):
        Use(profile="fashion-mnist").run()


def test_missing_or_invalid_profile_changes_nothing(folder: Path) -> None:
    before = (folder / "params.yaml").read_text()
    with pytest.raises(UsageError, match=r"digit; .*digits.*fashion-mnist"):
        Use(profile="digit").run()
    (folder / "broken.yaml").write_text(before.replace("batch_size: 64", "batch_size: -1"))
    with pytest.raises(UsageError, match=r"broken\.yaml: train\.batch_size"):
        Use(profile="broken.yaml").run()
    assert (folder / "params.yaml").read_text() == before


VELOCITY = {"prediction": "velocity", "timesteps": 1000}


def model_file(path: Path, **shape: object) -> Path:
    """A model that fits the small digits project, unless its shape is another one."""
    spec = spec_of(**shape)
    artefact = artefact_of(spec)
    process = artefact.process.model_copy(update=VELOCITY)
    save_artefact(path, network_of(spec).state_dict(), artefact.model_copy(update={"process": process}))
    return path


def pinned(folder: Path) -> object:
    return yaml.safe_load((folder / "params.yaml").read_text())["train"].get("init_from")


def found(invoke: Invoke) -> dict[str, dict[str, str]]:
    """Return the findings of `diffctl check` by subject."""
    return {one["subject"]: one for one in json.loads(invoke("check", "--json").out)}


@pytest.mark.slow
def test_model_is_stored_pinned_and_checked(project: Path, invoke: Invoke) -> None:
    model = model_file(project / "mine.safetensors")
    sha256 = read_artefact(model).model_sha256
    done = invoke("use", "--init-from", "mine.safetensors")
    kept = project / "start" / f"{sha256[:16]}.safetensors"
    assert kept.read_bytes() == model.read_bytes()
    assert pinned(project) == {"sha256": sha256}
    assert "8×8×1, 10 classes" in done.out
    assert found(invoke)["start"]["message"] == f"from {sha256[:16]}, 1 steps of test"
    copy_data(project)
    assert "; 0 of 10 classes start from its class of the same name" in found(invoke)["start"]["message"]
    kept.unlink()
    missing = found(invoke)["start"]
    assert (missing["level"], "`diffctl use --init-from`" in missing["message"]) == ("error", True)
    kept.with_name(f"{kept.name}.dvc").touch()
    assert found(invoke)["start"]["level"] == "warning", "DVC can fetch it"
    assert invoke("use", "--init-from", "none").code == 0
    assert pinned(project) is None
    assert "start" not in found(invoke)


@pytest.mark.slow
def test_check_reports_a_model_of_another_shape_or_of_grey_images(project: Path, invoke: Invoke) -> None:
    model_file(project / "mine.safetensors", channels=16)
    assert invoke("use", "--init-from", "mine.safetensors").code == 0
    assert "model.channels is 8, and the pretrained model has 16" in found(invoke)["start"]["message"]
    write_params(project, data={"channels": 3}, process=VELOCITY)
    model_file(project / "mine.safetensors")
    assert invoke("use", "--init-from", "mine.safetensors").code == 0
    warned = found(invoke)["start"]
    assert (warned["level"], "grey images" in warned["message"]) == ("warning", True)


@pytest.mark.slow
def test_dvc_tracks_the_model_and_git_sees_the_pin(project: Path) -> None:
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    git(project, "init", "--quiet")
    commit(project, "begin")
    subprocess.run([command()[0], "-m", "dvc", "init", "--quiet"], cwd=project, check=True)
    model_file(project / "models.safetensors")
    done = diffctl(project, "use", "--init-from", "models.safetensors")
    assert done.returncode == 0, done.stderr
    (tracked,) = (project / "start").glob("*.dvc")
    assert str(tracked.relative_to(project)) in done.stdout
    changed = git(project, "status", "--porcelain", "--untracked-files=all", "start", "params.yaml")
    assert {line[3:] for line in changed.splitlines()} == {"params.yaml", str(tracked.relative_to(project))}


def test_missing_model_changes_nothing(project: Path) -> None:
    empty_database(project / "mlflow.db")
    before = (project / "params.yaml").read_text()
    for start, word in {
        None: "--init-from",
        "params.yaml": "safetensors",
        "champion": "diffctl-digits has no champion",
        "champion:shoes": "diffctl-shoes has no champion",
        "version:2:shoes": "diffctl-shoes has no version 2",
        "4711": "'4711'",
    }.items():
        for profile in (None, "digits") if start else (None,):
            with pytest.raises(DiffctlError, match=word):
                Use(init_from=start, profile=profile, force=True).run()
    assert (project / "params.yaml").read_text() == before
    assert not list(project.glob("start/*"))


def values(config: Config) -> dict:
    return config.model_dump(mode="json")


def comments(lines: list[str]) -> list[str]:
    return [line.partition("#")[2] for line in lines if "#" in line]


def left_in(output: str) -> set[str]:
    """Return the fields that the command lists as not set."""
    _, _, lines = output.partition("not set:\n")
    return {line.partition(":")[0].strip() for line in lines.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("profile", ["digits", "imagenet64-adm"])
def test_only_the_listed_fields_differ_afterwards(profile, name, capsys):
    file = ROOT / f"profiles/{profile}.yaml"
    shutil.copy(file, PARAMS)
    before = load()
    Use(protocol=name).run()
    output = capsys.readouterr().out
    text, after = PARAMS.read_text(), load()
    assert after.evaluate.protocol == name
    assert {one.field for one in mismatches(name, values(after))} == left_in(output)
    removed = set(re.findall(r"^process\.(\w+): .* → removed", output, re.M))
    kept = [line for line in file.read_text().splitlines() if line.split(":")[0].strip() not in removed]
    assert comments(text.splitlines()) == comments(kept)
    assert after.data == before.data
    for one in mismatches(name, values(before)):
        assert one.source in output or one.field in left_in(output)
    Use(protocol=name).run()
    assert PARAMS.read_text() == text
    assert "follows the protocol" in capsys.readouterr().out


def test_published_statistics_are_set_once_downloaded(capsys):
    shutil.copy(ROOT / "profiles/imagenet64-adm.yaml", PARAMS)
    Use(protocol="adm").run()
    output = capsys.readouterr().out
    assert "evaluate.statistics: VIRTUAL_imagenet64_labeled.npz is not in references/: fetch it" in output
    assert "https://openaipublic.blob.core.windows.net/" in output
    file = Path("references/VIRTUAL_imagenet64_labeled.npz")
    file.parent.mkdir()
    file.write_bytes(b"statistics")
    Use(protocol="adm").run()
    assert "evaluate.statistics: not set → VIRTUAL_imagenet64_labeled.npz" in capsys.readouterr().out
    statistics = load().evaluate.statistics
    assert statistics is not None
    assert (statistics.file, statistics.sha256) == (file, sha256(b"statistics").hexdigest())
    assert mismatches("adm", values(load())) == []


@pytest.mark.slow
def test_edm_sets_process_sampler_and_spacing(capsys):
    shutil.copy(ROOT / "profiles/cifar10.yaml", PARAMS)
    Use(protocol="edm").run()
    assert "process.timesteps: 4,000 → removed (process.schedule edm has none)" in capsys.readouterr().out
    config = load()
    process = config.process
    assert (process.schedule, process.prediction, process.sigma_data) == ("edm", "edm", 0.5)
    assert (process.weighting, process.t_sampler, process.t_sampler_options) == ("edm", "log-normal", {})
    assert (config.sample.sampler, config.sample.spacing) == ("heun", "karras")
    assert (config.sweep.steps, config.sweep.eta) == ((18,), (0.0,))
    Use(protocol="ddim").run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("evaluate.protocol: edm → ddim (DDIM")
    assert "process.timesteps: not set → 1,000 (sec. 5)" in lines
    process = load().process
    assert (process.schedule, process.t_sampler, process.weighting) == ("linear", "uniform", "none")


def test_refused_protocol_or_list_with_comments_changes_nothing():
    text = (ROOT / "profiles/digits.yaml").read_text()
    text = text.replace("steps: [5, 10, 20, 50]", "steps:\n    - 5   # the least\n    - 10")
    PARAMS.write_text(text)
    for name, message in (("karras", "adm, edm, ddim"), ("ddim", r"cannot be set to \[10\]")):
        with pytest.raises(UsageError, match=message):
            Use(protocol=name).run()
    assert PARAMS.read_text() == text


PROCESSES = [
    {"schedule": "edm", "t_sampler_options": {"mean": -1.0}},
    {"variance": "learned", "loss": "hybrid", "t_sampler": "loss-aware"},
    {"variance": "learned", "loss": "vlb"},
    {"variance": "small", "loss": "simple", "prediction": "x0"},
    {"variance": "large", "loss": "simple", "weighting": "min-snr"},
]
OTHERS = {
    "train": {"p_uncond": 0.1},
    "sample": {"guidance": 1.5, "classes": "balanced"},
    "sweep": {
        "steps": [2, 18, 50],
        "eta": [0.0, 1.0],
        "guidance": [0.0, 2.0],
        "guidance_interval": [None, [0.1, 2.0]],
        "sampler": ["ddim", "dpm-solver++"],
    },
    "evaluate": {"reference": "test", "extra_extractors": ["inception-v3-compat"]},
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("data", ["digits", "cifar10", "imagenet64"])
@pytest.mark.parametrize("process", PROCESSES)
def test_result_is_valid_idempotent_and_differs_only_in_the_listed_fields(process, data, name):
    before = values(parse(params(process=process, data={"name": data}, **OTHERS), "test"))
    changes, unchanged = adopt_protocol(name, before)
    after = {key: dict(one) if isinstance(one, dict) else one for key, one in before.items()}
    for change in changes:
        section, key = change.field.split(".")
        assert after[section].get(key) == change.old
        after[section][key] = change.new
        if change.new is REMOVED:
            del after[section][key]
    config = parse(parse_yaml(yaml.safe_dump(after)), "test")
    assert {one.field for one in mismatches(name, values(config))} == unchanged.keys()
    assert adopt_protocol(name, values(config)) == ([], unchanged)


def test_set_edits_values_in_place_or_none_at_all(folder: Path, invoke: Invoke) -> None:
    before = (folder / "params.yaml").read_text()
    printed = invoke("set", "train.lr.rate=1e-3", "sweep.steps=[5,10]", "sample.runner=ray").out
    lines = printed.splitlines()
    assert lines[0] == "train.lr.rate: 0.002 → 0.001"
    assert lines[1].endswith(" → [5, 10]")
    assert lines[2] == 'sample.runner: unset → "ray"'
    edited = (folder / "params.yaml").read_text()
    assert re.findall("#.*", edited) == re.findall("#.*", before)
    assert "\n  steps: [5, 10]\n" in edited
    config = load()
    assert (config.train.lr.rate, config.sweep.steps, config.sample.runner) == (0.001, (5, 10), "ray")
    for wrong, where in {
        "train.lr.rat=1": "train.lr.rat",
        "train.lr": "train.lr",
        "train.seed=[": "train.seed=[",
    }.items():
        assert_refused(invoke("set", "train.steps=7", wrong), where)
    assert (folder / "params.yaml").read_text() == edited
