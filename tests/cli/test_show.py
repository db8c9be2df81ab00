"""`diffctl show`: text, files and JSON, for params.yaml, a profile or a model."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffusion.layout import MODEL
from tests.conftest import ROOT
from tests.helpers.invoke import assert_refused
from tests.helpers.networks import network_of, small_model, spec_of


@pytest.fixture
def folder(project: Path, digits_store: Path) -> Path:
    """A project with prepared digits, a model of random weights and the profiles."""
    shutil.copytree(ROOT / "profiles", project / "profiles")
    (project / "data/prepared").mkdir(parents=True)
    shutil.move(digits_store, project / "data/prepared/test")
    small_model(MODEL)
    return project


SHORT = ("forward --image 3", "steps --steps 5", "variance --num 2 --steps 5", "reverse --steps 3 --index 2")


@pytest.mark.parametrize("line", [*SHORT, "model", "samplers --steps 3"])
def test_figure_as_text_json_and_files(folder, invoke, line) -> None:
    command = ("show", *line.split())
    assert len(invoke(*command).out.splitlines()) > 5
    assert json.loads(invoke(*command, "--json").out)
    for suffix in ("png", "svg"):
        assert invoke(*command, "--out", f"figure.{suffix}").out.endswith(f": figure.{suffix}\n")
    assert (folder / "figure.svg").read_text().startswith("<svg")
    with Image.open(folder / "figure.png") as picture:
        picture.load()


def test_params_profile_and_model_give_different_figures(folder, invoke) -> None:
    short = yaml.safe_load((folder / "params.yaml").read_text())
    short["process"]["timesteps"] = 77
    (folder / "short.yaml").write_text(yaml.safe_dump(short))

    def values(*arguments: str) -> dict:
        return json.loads(invoke("show", *arguments, "--json").out)

    assert values("steps")["last"] == 999
    assert values("steps", "--profile", "short.yaml")["last"] == 76
    assert values("steps", "--model", str(MODEL))["last"] == 99
    parameters = values("model", "--model", str(MODEL))["parameters"]
    assert parameters == sum(p.numel() for p in network_of(spec_of()).parameters())
    assert values("model", "--profile", "cifar10")["parameters"] > 100 * parameters
    assert "fraction" not in values("variance", "--profile", "digits")
    Image.new("RGB", (12, 6), "red").save("red.png")
    Image.new("L", (5, 5), 100).save("grey.png")
    for name, shape in (("red.png", (6, 12, 3)), ("grey.png", (5, 5, 1))):
        first = values("forward", "--image", name)["noised"]["cosine"][0]
        assert (len(first), len(first[0]), len(first[0][0])) == shape
    shutil.rmtree(folder / "data")
    assert values("forward")["noised"] == {}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("steps --profile digits --champion", "--profile"),
        ("steps --steps 2000", "1 to 1000"),
        ("forward --image 64", "64"),
    ],
)
def test_misuse_is_one_sentence(folder, invoke, arguments, word) -> None:
    assert_refused(invoke("show", *arguments.split()), word)
