"""The base of a cascade: the files of its scores stay the same while MLflow's champions change."""

import re
from pathlib import Path

import pytest

from cli.actions.trials import trial_process
from cli.models.model_choice import selected_source
from cli.shared.options import ModelSourceOptions
from diffusion.config import parse
from diffusion.layout import MODEL, MODEL_RUNS, RUN, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.base_model import BaseConfig, base_text
from diffusion.protocol.resolution import best_settings
from diffusion.protocol.scores_document import read_scores, write_scores_document
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.base_file import base_file
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file, write_json
from diffusion.trials.trial_runs import About, open_about
from serving.model_source import PublishedModel, published_model
from tests.conftest import params, write_params
from tests.helpers.networks import small_model
from tests.helpers.scores_document import document
from tracking import keys
from tracking.recipes import recipe_of, source_of_file, source_of_run
from tracking.registry.promotion import Override
from tracking.registry.registered_models import promote, register
from tracking.runs.base_models import fetch_base, fix_bases, fixed_base, update_base
from tracking.runs.score_logging import log_scores
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
NAME, SMALL = "diffctl-digits", "diffctl-small"
BASE = BaseConfig(champion=SMALL, sampling={"steps": 3})
FORCED, LOCAL, CHAMPION = Override(force=True), ModelSourceOptions(), ModelSourceOptions(champion=True)


def base_of(seed: int) -> Path:
    """Write a model of 4×4 pixels."""
    unlabelled = {"num_classes": 0, "null_class": False}
    return small_model(
        Path(f"small{seed}.safetensors"), seed, image_size=4, attention_resolutions=(), **unlabelled
    )


def register_base(seed: int) -> bytes:
    """Make a model of 4×4 pixels the champion of SMALL; return its file."""
    MODEL.parent.mkdir(exist_ok=True)
    content = base_of(seed).read_bytes()
    MODEL.write_bytes(content)
    write_json(RUN, add_checksum({"key": f"small{seed}", "fingerprint": f"{seed}" * 16}))
    write_scores_document(SCORES, document(model_sha256=read_artefact(MODEL).model_sha256, data="small"))
    register(FORCED)
    return content


def make_cascade(make_model, base: BaseConfig, small: bytes, value: float = 0.1) -> None:
    """Write a model that enlarges images, and its scores with a base."""
    Path("base.safetensors").write_bytes(small)
    digest = read_artefact(Path("base.safetensors")).model_sha256
    card = {"base": base_text(base), "nfe": 5, "base_nfe": 3, "weighted_nfe": 2.5}
    model = {"low_res": 4, "cond_noise": 0.5}
    make_model(1, {(2, 0.0): value}, model=model, base_sha256=digest, **card)


def log_model(run: str) -> None:
    """Log the model file to a run, as the sender of a training does."""
    connect().log_artifact(run, str(MODEL), keys.MODEL_FOLDER)
    connect().set_tag(run, keys.FILE_SHA256, sha256_file(MODEL))


def base_file_of(options: ModelSourceOptions, **given: str) -> bytes:
    """Return the base that a command samples with, as in the best cell or as an option names it."""
    settings = SampleSettings(**{**best_settings(read_scores(SCORES)).model_dump(), **given})
    return recipe_of(selected_source(options), settings, given).files.base.read_bytes()


def served_run(run: str) -> PublishedModel:
    return published_model(source_of_run(run), pytest.fail)


@pytest.mark.slow
def test_champion_and_run_sample_with_the_base_of_their_own_scores(make_model):
    write_params(Path.cwd())
    named = BaseConfig(file="base.safetensors")
    first, second = (base_of(seed).read_bytes() for seed in (1, 2))
    make_cascade(make_model, named, first, 0.2)
    register()
    make_cascade(make_model, named, second, 0.1)
    assert register().champion == 2
    run = str(connect().get_model_version(NAME, "2").run_id)
    assert base_file_of(CHAMPION) == second
    promote(NAME, 1, FORCED)
    assert base_file_of(CHAMPION) == first
    log_model(run)
    of_run = ModelSourceOptions(run_id=run)
    assert base_file_of(of_run) == served_run(run).files.base.read_bytes() == second
    make_cascade(make_model, named, first, 0.3)
    log_scores(read_scores(SCORES))
    assert base_file_of(of_run) == served_run(run).files.base.read_bytes() == first
    make_cascade(make_model, named, base_of(3).read_bytes())
    log_scores(read_scores(SCORES))
    assert base_file_of(of_run) == Path("base.safetensors").read_bytes(), "no version has this base"
    Path("base.safetensors").write_bytes(first)
    wrong = "the base base.safetensors is not the one of the scores"
    with pytest.raises(UsageError, match=re.escape(wrong)):
        base_file_of(of_run)
    reported: list[str] = []
    assert published_model(source_of_run(run), reported.append).scores is None
    assert wrong in reported[0]


def base_of_trial(verdict: Path, monkeypatch) -> bytes:
    """Return the base that a trial of a verdict samples with."""
    scored: list[Path] = []
    take = lambda config, model, folder, base: scored.append(base) or document()  # noqa: E731
    monkeypatch.setattr(trial_process, "score_grid", take)
    sample = {"base": BASE.model_dump(exclude_none=True)}
    config = parse(params(sample=sample, model={"low_res": 4}), "the test")
    about = open_about(verdict, About(key="v", settings={}, search={}))
    trial_process.score_trial(config, MODEL, verdict, about, {})
    return scored[0].read_bytes()


@pytest.mark.slow
def test_the_base_of_scores_and_of_a_verdict_stays_when_its_champion_changes(make_model, monkeypatch):
    write_params(Path.cwd())
    first = register_base(1)
    update_base(BASE)
    verdict = Path("runs/verdict/v")
    about = About(key="v", settings={}, search={"metric": "fd"}, bases=fix_bases([BASE, None]))
    fixed = open_about(verdict, about).bases
    second = register_base(2)
    make_cascade(make_model, BASE, first)
    named = base_text(BASE)
    assert base_file_of(LOCAL) == first
    assert base_file_of(LOCAL, base=named) == fetch_base(BASE).read_bytes() == second
    assert base_file(BASE).read_bytes() == first, "only a stage pins another one"
    assert base_of_trial(verdict, monkeypatch) == first
    update_base(BASE)
    assert base_file(BASE).read_bytes() == second
    assert register().promoted
    connect().delete_registered_model(NAME)
    run = log_scores(read_scores(SCORES))
    log_model(run)
    cached = MODEL_RUNS / fixed[str(BASE)] / "model.safetensors"
    for find_base in (  # the run has no registered model
        lambda: base_file_of(ModelSourceOptions(run_id=run)),
        lambda: served_run(run).files.base.read_bytes(),
        lambda: published_model(source_of_file(MODEL), pytest.fail).files.base.read_bytes(),
    ):
        assert find_base() == first
        cached.unlink()
        assert find_base() == first, "it is fetched again"
    cached.unlink()
    with pytest.raises(DiffctlError, match=f"the base champion {SMALL} that all trials share, is missing"):
        fixed_base(BASE, fixed)
    register()
    connect().delete_registered_model(SMALL)
    cached.unlink()
    with monkeypatch.context() as offline:
        offline.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        reported: list[str] = []
        assert published_model(source_of_file(MODEL), reported.append).scores is None
        assert "is served without scores: MLflow" in reported[0]
    assert base_file_of(CHAMPION) == first, "a registered cascade carries its base"
