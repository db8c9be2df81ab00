"""`diffctl use --protocol`: params.yaml follows a paper, and fields that cannot are listed."""

import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from cli.commands.pipeline import Use
from diffusion.check.params_changes import adopt_protocol
from diffusion.config import Config, load, parse
from diffusion.layout import PARAMS
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.errors import UsageError
from diffusion.system.params import REMOVED, parse_yaml
from tests.conftest import ROOT, params


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without downloaded weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def values(config: Config) -> dict:
    return config.model_dump(mode="json")


def comments(lines: list[str]) -> list[str]:
    return [line.partition("#")[2] for line in lines if "#" in line]


def left_in(output: str) -> set[str]:
    """Return the fields that the command lists as not set."""
    _, _, lines = output.partition("not set:\n")
    return {line.partition(":")[0].strip() for line in lines.splitlines()}


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
