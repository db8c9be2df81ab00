"""`diffctl show`: text, files and JSON; of params.yaml, a profile or a model; mistakes in a sentence."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cli import main
from cli.commands import show
from diffusion.model.model_file import save_artefact
from tests.conftest import ROOT
from tests.helpers.networks import artefact_of, network_of, spec_of


@pytest.fixture
def folder(project: Path, digits_store: Path) -> Path:
    """A project with prepared digits, a model of random weights and the profiles."""
    shutil.copytree(ROOT / "profiles", project / "profiles")
    (project / "data/prepared").mkdir(parents=True)
    shutil.move(digits_store, project / "data/prepared/test")
    (project / "models").mkdir()
    spec = spec_of()
    save_artefact(project / "models/unet.safetensors", network_of(spec).state_dict(), artefact_of(spec))
    return project


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["diffctl", "show", *arguments])
    capsys.readouterr()
    try:
        main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


COMMANDS = {
    "forward": ["--image", "3"],
    "steps": ["--steps", "5"],
    "variance": ["--num", "2", "--steps", "5"],
    "reverse": ["--steps", "3", "--index", "2"],
    "model": [],
    "samplers": ["--steps", "3"],
}


def test_every_command_is_tried() -> None:
    assert {command.name or command.callback.__name__ for command in show.app.registered_commands} == set(
        COMMANDS
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_text_json_and_files(folder, capsys, monkeypatch, name) -> None:
    code, text, _ = run(capsys, monkeypatch, name, *COMMANDS[name])
    assert code == 0
    assert len(text.splitlines()) > 5
    code, values, _ = run(capsys, monkeypatch, name, *COMMANDS[name], "--json")
    assert code == 0
    assert json.loads(values)
    for suffix in ("png", "svg"):
        code, said, _ = run(capsys, monkeypatch, name, *COMMANDS[name], "--out", f"figure.{suffix}")
        assert code == 0
        assert said.endswith(f": figure.{suffix}\n")
    assert (folder / "figure.svg").read_text().startswith("<svg")
    with Image.open(folder / "figure.png") as picture:
        picture.load()


def test_a_profile_a_model_and_params_are_each_their_own(folder, capsys, monkeypatch) -> None:
    short = yaml.safe_load((folder / "params.yaml").read_text())
    short["process"]["timesteps"] = 77
    (folder / "short.yaml").write_text(yaml.safe_dump(short))

    def timesteps(*arguments: str) -> int:
        shown = json.loads(run(capsys, monkeypatch, "steps", "--json", *arguments)[1])
        return int(shown["timesteps"])

    assert timesteps() == 1000
    assert timesteps("--profile", "short.yaml") == 77
    assert timesteps("--model", "models/unet.safetensors") == 100
    network = json.loads(run(capsys, monkeypatch, "model", "--json", "--profile", "cifar10")[1])
    ours = json.loads(run(capsys, monkeypatch, "model", "--json", "--model", "models/unet.safetensors")[1])
    assert network["parameters"] > 100 * ours["parameters"]
    assert ours["parameters"] == sum(p.numel() for p in network_of(spec_of()).parameters())


def test_bounds_alone_of_a_profile_and_no_image_without_data(folder, capsys, monkeypatch) -> None:
    code, said, _ = run(capsys, monkeypatch, "variance", "--profile", "digits", "--json")
    assert code == 0
    assert "fraction" not in json.loads(said)
    shutil.rmtree(folder / "data")
    code, said, told = run(capsys, monkeypatch, "forward", "--json")
    assert code == 0
    assert json.loads(said)["noised"] == {}
    assert "no data is prepared here" in told


def test_an_image_file_of_any_shape_is_shown(folder, capsys, monkeypatch) -> None:
    Image.new("RGB", (12, 6), "red").save("red.png")
    Image.new("L", (5, 5), 100).save("grey.png")
    for name, shape in (("red.png", (6, 12, 3)), ("grey.png", (5, 5, 1))):
        values = json.loads(run(capsys, monkeypatch, "forward", "--image", name, "--json")[1])
        first = values["noised"]["cosine"][0]
        assert (len(first), len(first[0]), len(first[0][0])) == shape


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["steps", "--profile", "digits", "--champion"], "--profile excludes"),
        (["steps", "--profile", "none"], "the profiles are"),
        (["steps", "--steps", "2000"], "give 1 to 1000"),
        (["steps", "--out", "figure.pdf"], "ends in .png or .svg"),
        (["forward", "--image", "64"], "there is no image 64"),
        (["forward", "--image", "none.png"], "no image at none.png"),
        (["forward", "--image", "a.png", "--images", "b"], "does nothing"),
        (["variance", "--profile", "digits", "--num", "3"], "does nothing"),
        (["reverse", "--noise", "large"], "does nothing"),
        (["reverse", "--model", "none.safetensors"], "no model at"),
    ],
)
def test_a_mistake_is_one_sentence(folder, capsys, monkeypatch, arguments, why) -> None:
    code, _, told = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert why in told
    assert told.startswith("diffctl: ")
    assert told.count("\n") == 1
