"""`diffctl publish hub` with a server that has the hub's endpoints."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.scores_document import write_scores_document
from tests.helpers.hub_server import TOKEN
from tests.helpers.invoke import assert_refused
from tests.helpers.networks import assert_equal_but_for_rounding, small_model
from tests.helpers.scores_document import certain, document

EXPORTABLE = {"channels": 32, "head_channels": 16}
FAST = ("--steps", "2")


def scored_model(folder, card=None, **shape):
    """Write a model and its scores, the best cell with 2 steps; return its model_sha256."""
    (folder / MODEL).parent.mkdir(exist_ok=True)
    (folder / SCORES).parent.mkdir(exist_ok=True)
    sha256 = read_artefact(small_model(folder / MODEL, **shape)).model_sha256
    scores = document({(2, 0.0): 0.1, (4, 0.0): 0.3}, model_sha256=sha256, **(card or {}))
    write_scores_document(folder / SCORES, certain(scores, "kd_effnet_lite0_64"))
    return sha256


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_publication_is_one_commit_and_equal_content_none(hub, project, invoke):
    scored_model(project)
    dry = invoke("publish", "hub", "me/model", "--license", "mit", "--dry-run", "content")
    assert dry.code == 0, dry.err
    assert not hub.exists
    done = invoke("publish", "hub", "me/model", "--license", "mit", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["is_new"]
    assert {name: content for name, content in hub.files.items() if name != ".gitattributes"} == files_of(
        project / "content"
    )
    assert {"model.safetensors", "samples.png", "scores.json"} <= hub.files.keys()
    uploads = list(hub.uploads)
    again = invoke("publish", "hub", "me/model", "--license", "mit")
    assert again.out == f"{hub.address('/me/model')} has this content already\n"
    assert (len(hub.commits), hub.uploads) == (1, uploads)
    assert TOKEN not in "".join((dry.out, dry.err, done.out, done.err, again.err))


def test_publication_removes_what_an_earlier_one_left_and_nothing_else(hub, project, invoke):
    hub.exists = True
    hub.files = dict.fromkeys(("notes.txt", "unet/config.json", "scores.json", "model_index.json"), b"old")
    small_model(project / "other.safetensors")
    done = invoke("publish", "hub", "me/model", "--model", "other.safetensors", *FAST)
    assert done.code == 0, done.err
    assert "published without scores: no scores at" in done.err
    assert "published without a diffusers pipeline: diffusers' UNet2DModel" in done.err
    assert hub.files.keys() == {"notes.txt", "README.md", "model.safetensors", "samples.png"}
    assert len(hub.commits) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "image_size"), [(0, 8), (10, (8, 16))])
def test_commands_and_code_of_the_card_run(num_classes, image_size, project, invoke):
    shape = {"num_classes": num_classes, "image_size": image_size}
    options = json.dumps({"rho": 5.0, "sigma_max": None, "sigma_min": None})
    best = {"spacing": "karras", "spacing_options": options, "clip": False}
    scored_model(project, best, **EXPORTABLE, **shape, null_class=False)
    assert invoke("publish", "hub", "me/model", "--dry-run", "model").code == 0
    card = (project / "model/README.md").read_text()
    (command,) = re.findall("^    diffctl (.*)$", card, re.M)
    assert "--steps 2 --spacing karras --spacing-option rho=5.0 --no-clip" in command
    assert invoke(*shlex.split(command)).code == 0
    ours, sampled = (np.asarray(Image.open(name)) for name in ("model/samples.png", "samples.png"))
    assert_equal_but_for_rounding(ours, sampled)
    pytest.importorskip("diffusers")
    (code,) = re.findall("```python\n(.*?)```", card, re.S)
    names = {}
    exec(code.replace('"me/model"', '"model"'), names)
    assert np.isfinite(np.asarray(names["images"])).all()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, 2, "set HF_TOKEN to a token with write access, or run `hf auth login`"),
        (403, 2, "give the token write access"),
        (400, 1, "correct the name and the options"),
        (503, 75, "run the same command again later"),
    ],
)
def test_answers_of_the_hub_are_one_sentence(hub, project, invoke, status, code, words):
    scored_model(project)
    hub.status = status
    done = invoke("publish", "hub", "me/model")
    assert_refused(
        done, f"the hub at {hub.address()} refused me/model with {status} (not now)", words, code=code
    )
    assert TOKEN not in done.err


def test_wrong_name_token_licence_and_visibility_are_wrong_use(hub, project, invoke, monkeypatch):
    scored_model(project)
    assert_refused(invoke("publish", "hub", "model"), "REPO model is no name of a repository: give user/name")
    assert_refused(invoke("publish", "hub", "me/a--b"), "REPO me/a--b is no name of a repository")
    done = invoke("publish", "hub", "me/model", "--license", "free")
    assert done.code == 2
    assert '"license" must be one of [apache-2.0, mit]: correct --license or --dataset' in done.err
    assert_refused(invoke("publish", "hub", "me/model", "--private"), "me/model exists and is public")
    monkeypatch.setenv("HF_TOKEN", "hf_sec\x01ret")
    done = invoke("publish", "hub", "me/model")
    assert_refused(done, "the hub's token is malformed: set HF_TOKEN")
    assert "ret" not in done.err.replace("write", "")
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(invoke("publish", "hub", "me/model"), "there is no token for the hub: set HF_TOKEN")
    assert not hub.commits


def test_unreachable_hub_is_a_temporary_error(hub, project, invoke, monkeypatch):
    scored_model(project)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    done = invoke("publish", "hub", "me/model")
    assert_refused(done, "the hub at http://127.0.0.1:1 cannot be reached for me/model", code=75)
