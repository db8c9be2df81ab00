"""`diffctl evaluate --paper`: the printed table and the JSON."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from cli import main
from diffusion.layout import SCORES
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.errors import UsageError
from tests.helpers.scores_document import document

METRIC = "fd_effnet_lite0_64"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A project with scores of a sweep, and a paper on the same data."""
    monkeypatch.chdir(tmp_path)
    write_scores_document(SCORES, document())
    rows = [{"steps": 5, "eta": 0.0}, {"steps": 10, "eta": 0.5}]
    figures = [
        {"name": "theirs", "where": "table 1", "metric": METRIC, "value": 250.0, "protocol": row}
        for row in rows
    ]
    paper = {"title": "A", "source": "B", "protocol": {"num_images": 500}, "figures": figures}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(paper))


def run(*arguments):
    return CliRunner().invoke(main.app, ["evaluate", *arguments])


def test_command_compares_the_sweep_with_the_paper(sweep):
    lines = run("--paper", "paper.yaml").stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["comparable", "yes"]
    assert "no: eta 0.5 (here 0.0)" in lines[2]
    assert lines[-1] == "A, B"


def test_common_differences_are_stated_once(sweep):
    printed = run("--paper", "edm").stdout
    assert printed.count("least of 3 (here 1)") == 1
    assert "none is comparable: the paper has " in printed


def test_json_lists_the_differing_fields(sweep):
    found = json.loads(run("--paper", "paper.yaml", "--json").stdout)
    first, second = found["figures"]
    assert (first["comparable"], first["here"], first["cell"]) == (True, 300.0, "steps5-eta0")
    assert second["departures"] == [{"field": "eta", "paper": 0.5, "here": 0.0}]


@pytest.mark.parametrize("arguments", [[], ["images"], ["--against", "images"], ["--paper", "none"]])
def test_wrong_usage_is_refused(arguments):
    assert isinstance(run(*arguments).exception, UsageError)
