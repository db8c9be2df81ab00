"""`diffctl evaluate --paper`: what stands on the terminal, and what a script reads."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from cli import main
from diffusion.layout import SCORES
from diffusion.protocol.scores import write_document
from diffusion.system.errors import UsageError
from tests.helpers.scores_document import document

METRIC = "fd_effnet_lite0_64"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A project with a sweep's scores, and a paper on the same data."""
    monkeypatch.chdir(tmp_path)
    write_document(SCORES, document())
    rows = [{"steps": 5, "eta": 0.0}, {"steps": 10, "eta": 0.5}]
    figures = [
        {"name": "theirs", "where": "table 1", "metric": METRIC, "value": 250.0, "protocol": row}
        for row in rows
    ]
    paper = {"title": "A", "source": "B", "protocol": {"num_images": 500}, "figures": figures}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(paper))


def run(*arguments):
    return CliRunner().invoke(main.app, ["evaluate", *arguments])


def test_the_sweep_stands_beside_the_paper(sweep):
    lines = run("--paper", "paper.yaml").stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["comparable", "yes"]
    assert "no: eta 0.5 (here 0.0)" in lines[2]
    assert lines[-1] == "A, B"


def test_what_all_depart_in_is_said_once(sweep):
    printed = run("--paper", "edm").stdout
    assert printed.count("least of 3 (here 1)") == 1
    assert "none is comparable: the paper has " in printed


def test_a_script_reads_the_fields_that_differ(sweep):
    found = json.loads(run("--paper", "paper.yaml", "--json").stdout)
    first, second = found["figures"]
    assert (first["comparable"], first["here"], first["cell"]) == (True, 300.0, "steps5-eta0")
    assert second["departures"] == [{"field": "eta", "paper": 0.5, "here": 0.0}]


def test_without_scores_it_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "make them with `diffctl stage evaluate`" in str(run("--paper", "ddim").exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give PATH and --against PATH, or --paper"),
        (["images"], "give PATH and --against PATH"),
        (["--against", "images"], "give PATH and --against PATH"),
        (["--paper", "none"], "there is no paper none"),
        (["images", "--against", "images", "--paper", "none"], "there is no paper none"),
    ],
)
def test_wrong_use_is_told_before_any_work(arguments, words):
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
