"""Settings and files of `diffctl sample` and `sweep`: budgets, guides, axes, columns of the table."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.actions.scores import model_sweep
from cli.actions.scores.model_sweep import _axes
from cli.actions.scores.score_tables import show_sweep_scores
from diffusion.images.store import open_store
from diffusion.layout import MODEL, RUN, SCORES, SWEEP_RUN
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.posthoc_ema import snapshot_path
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.scores_document import read_scores, write_scores_document
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import CellFiles, NetworkFiles
from diffusion.sample.sampling_card import sampling_card
from diffusion.system.checksums import add_checksum
from diffusion.system.files import sha256_file, write_json
from diffusion.system.locks import file_lock
from flows.champion import _options
from tests.conftest import write_params
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, small_model, spec_of
from tests.helpers.scores_document import document, with_space
from tracking.keys import FILE_SHA256, MODEL_FOLDER
from tracking.recipes import Source, recipe_of, source_of_file, source_of_version
from tracking.registry.registered_models import VersionFiles, register
from tracking.runs.score_logging import log_scores
from tracking.store import connect, tracking_uri

SWEEP = {(5, 0.0): 0.3, (10, 0.5): 0.2, (20, 0.0): 0.25, (50, 1.0): 0.1}


@pytest.fixture
def sample(project, invoke):
    """Run `diffctl sample` in a project with a model and the scores of its sweep."""
    digest = read_artefact(small_model(MODEL)).model_sha256
    write_scores_document(SCORES, document(SWEEP, model_sha256=digest, noise="large", seed=3))
    write_json(RUN, add_checksum({"key": "key", "fingerprint": "f" * 16}))
    return lambda *arguments: invoke("sample", "--out", "x.npz", "--num", "2", *arguments)


def test_budget_selects_the_best_affordable_cell(sample):
    made = json.loads(sample("--budget", "20", "--json").out)
    assert (made["steps"], made["eta"], made["noise"], made["seed"]) == (10, 0.5, "large", 0)
    assert (made["model_sha256"], made["nfe"]) == (read_artefact(MODEL).model_sha256, 10)
    budgeted = np.load("x.npz")["arr_0"]
    sample("--steps", "10", "--eta", "0.5", "--noise", "large")
    np.testing.assert_array_equal(np.load("x.npz")["arr_0"], budgeted)
    printed = sample("--budget", "5", "--seed", "7").out
    assert printed.startswith("5 steps, η = 0, ddim, the best of its sweep for 5 NFE\n")  # no idle options


def test_a_replaced_guide_is_not_used_under_the_scores_of_another(sample) -> None:
    guide = small_model(Path("guides/late.safetensors"), seed=1)
    digest, guided = read_artefact(MODEL).model_sha256, {"guidance": 1.0, "guide": str(guide)}
    card = {"model_sha256": digest, **guided, "guidance_rule": "autoguidance", "guide_sha256": "0" * 64}
    write_scores_document(SCORES, document(SWEEP, **card))
    assert_refused(sample("--budget", "20"), f"the guide {guide} is not the one of the scores")


def test_a_model_of_process_edm_is_sampled_at_karras_times_by_default(sample) -> None:
    process = ProcessConfig(schedule="edm", sigma_data=0.5)
    spec = spec_of(out_channels=1)
    save_artefact(MODEL, network_of(spec).state_dict(), artefact_of(spec, process=process))
    assert json.loads(sample("--steps", "4", "--json").out)["spacing"] == "karras"
    assert json.loads(sample("--steps", "4", "--spacing", "uniform", "--json").out)["spacing"] == "uniform"


def test_unaffordable_or_contradicting_budgets_and_foreign_scores_are_refused(sample):
    assert_refused(sample("--budget", "4"), "steps5-eta0")
    for option in ("--eta", "--steps"):
        assert_refused(sample("--budget", "20", option, "1"), "--budget", option)
    write_scores_document(SCORES, document(SWEEP))
    assert_refused(sample("--budget", "20"), "another model")
    digest = read_artefact(MODEL).model_sha256
    write_scores_document(SCORES, document(SWEEP, model_sha256=digest, sampling_version=None))
    assert_refused(sample("--budget", "20"), "sampling_version")
    SCORES.unlink()
    assert_refused(sample("--budget", "20"), str(SCORES))


def test_steps_without_learned_times_are_refused(sample, monkeypatch):
    scores = document({(2, 0.0): 0.2})
    for cell in scores.cells.values():
        cell.card.update(spacing="learned", spacing_options=json.dumps({"levels": [9.0, 0.4]}))
        cell.card["model_sha256"] = read_artefact(MODEL).model_sha256
    write_scores_document(SCORES, scores)
    assert_refused(sample("--steps", "20"), "learned times for 2 steps, not 20")


def test_options_of_a_sampler_and_a_spacing(sample, project, invoke, monkeypatch):
    chosen = ["--steps", "4", "--sampler", "unipc", "--spacing", "karras", "--json"]
    own = ["--sampler-option", "order=2", "--sampler-option", "variant=bh1", "--spacing-option", "rho=3"]
    made = json.loads(sample(*chosen, *own).out)
    assert made["sampler_options"] == {"order": 2, "variant": "bh1"}
    assert made["spacing_options"] == {"rho": 3}
    images = np.load("x.npz")["arr_0"]
    sample(*chosen)
    assert (np.load("x.npz")["arr_0"] != images).any()
    for wrong in ("order=9", "orders=2"):
        assert_refused(
            sample(*chosen, "--sampler-option", wrong), "sampler_options of unipc: ", "order, variant"
        )
    assert_refused(sample(*chosen, "--sampler-option", "order"), "--sampler-option order: give KEY=VALUE")
    assert_refused(sample("--budget", "20", *own), "--budget takes --sampler-option")
    for sampler, option in {"euler-ancestral": "eta", "heun": "s_churn"}.items():
        refused = sample("--sampler", sampler, "--eta", "0.5")
        assert_refused(refused, f"its noise is set by sampler_options.{option}")

    write_params(project)
    swept = []
    take = lambda config, *_: swept.append(config) or document(SWEEP)  # noqa: E731
    monkeypatch.setattr("cli.actions.scores.model_sweep.score_grid", take)
    assert invoke("sweep", "--sampler", "ipndm", "--eta", "0", *own[:2]).code == 0
    cells = [cell_settings(swept[0].sample, cell) for cell in grid(swept[0].sample, swept[0].sweep)]
    assert {(one.sampler, one.sampler_options["order"]) for one in cells} == {("ipndm", 2)}
    assert_refused(invoke("sweep", "--sampler", "ipndm,unipc", *own[:2]), "one sampler", "ipndm, unipc")


def test_second_sweep_in_a_folder_is_refused(sample, project, invoke, monkeypatch):
    write_params(project)
    monkeypatch.setattr("cli.actions.scores.model_sweep.score_grid", lambda *_: document(SWEEP))
    with file_lock(SWEEP_RUN / "lock"):
        assert_refused(invoke("sweep"), "another sweep uses runs/sweep", code=1)
    assert invoke("sweep").code == 0


def test_guided_sweep_uses_the_networks_of_the_registered_version(sample, project, invoke, monkeypatch):
    write_params(project)
    known, used = {"early": Path("own-guide")}, []
    monkeypatch.setattr(Source, "named_networks", lambda _: known)
    monkeypatch.setattr(model_sweep, "score_grid", lambda *given: used.append(given[-1]) or document(SWEEP))
    for guidance in ("0,1", "0"):
        done = invoke("sweep", "--guidance", guidance, *(("--guide", "early") if guidance != "0" else ()))
        assert done.code == 0, done.err
    assert used == [known, {}]


def test_scale_repeats_pixels(sample):
    for name in ("x.png", "x.gif"):
        sizes = []
        for scale in ("1", "3"):
            assert sample("--steps", "2", "--scale", scale, "--out", name).code == 0
            sizes.append(np.asarray(Image.open(name)))
        np.testing.assert_array_equal(sizes[1], sizes[0].repeat(3, axis=0).repeat(3, axis=1))
    assert_refused(sample("--scale", "2"), "--scale")
    assert_refused(sample("--scale", "32", "--num", "2000", "--out", "x.png"), "--scale 32", "million pixels")


@pytest.mark.slow
def test_registered_model_and_run_provide_their_scores(project, sample):
    empty_database(project / "mlflow.db")
    write_params(project)
    register()
    run_id = log_scores(read_scores(SCORES))
    SCORES.unlink()
    assert json.loads(sample("--champion", "--budget", "20", "--json").out)["steps"] == 10
    client = connect(tracking_uri())
    client.log_artifact(run_id, str(MODEL), MODEL_FOLDER)
    client.set_tag(run_id, FILE_SHA256, sha256_file(MODEL))
    assert json.loads(sample("--run-id", run_id, "--budget", "60", "--json").out)["steps"] == 50


BEST = {"guidance": 1.0, "guide": "early", "classifier": "first"}
OWN = {"guide": Path("own-guide"), "classifier": Path("own-classifier")}


@pytest.mark.parametrize(
    ("carried", "changes", "guide", "classifier"),
    [
        (OWN, {}, OWN["guide"], OWN["classifier"]),
        (OWN, {"classifier": "second"}, OWN["guide"], "second"),
        (OWN, {"guide": "late"}, "late", OWN["classifier"]),
        (OWN, {"guidance": 0.0}, None, OWN["classifier"]),
        (OWN, {"classifier_scale": 0.0}, OWN["guide"], None),
        ({"guide": OWN["guide"]}, {"classifier": "second"}, OWN["guide"], "second"),
    ],
)
def test_each_guide_is_the_registered_one_only_if_it_is_that_of_the_best_cell(
    tmp_path, monkeypatch, carried, changes, guide, classifier
):
    monkeypatch.chdir(tmp_path)
    model, by_classifier = small_model(tmp_path / "model.safetensors"), loaded_classifier()
    for seed, name in enumerate(("late", "own-guide"), start=1):
        small_model(Path(name), seed)
    for name in ("second", "own-classifier"):
        save_artefact(Path(name), by_classifier.network.state_dict(), by_classifier.artefact)
    best = SampleSettings(**{name: BEST[name] for name in BEST if name != "classifier" or name in carried})
    registered = NetworkFiles(model, **carried)
    card = sampling_card(best, registered.read())
    scores = document({(best.steps, best.eta): 0.1}, **card)
    source = source_of_version("digits", VersionFiles(1, registered, scores, "run"))
    settings = SampleSettings(**{**BEST, **changes})
    files = recipe_of(source, settings).files
    assert files == NetworkFiles(model, guide and Path(guide), classifier and Path(classifier))
    known = source.named_networks()
    assert known == {BEST[kind]: file for kind, file in carried.items()}
    sample = SampleConfig(num_images=2, **{**BEST, **changes})
    cell = grid(sample, SweepConfig(steps=[2], eta=[0.0]))[0]
    assert CellFiles(model, sample, [cell], known=known).of(cell) == files
    assert source_of_file(model).named_networks() == {}


@pytest.mark.parametrize("axis", [{}, {"guidance_interval": [None, [0.2, 5], [1e-05, 1e9]]}])
def test_options_of_the_flow_are_parsed_as_its_grid(axis):
    grid = SweepConfig(steps=[5, 10], eta=[0.0, 0.5], sampler=["ddim"], guidance=[0.0, 1.5], **axis)
    options = list(_options(grid, None))
    pairs = zip(*[iter(options)] * 2, strict=True)
    given = {flag.removeprefix("--").replace("-", "_"): text for flag, text in pairs}
    assert _axes(SweepConfig(steps=[1], eta=[1.0]), given) == grid


def test_table_has_columns_for_every_feature_space(capsys):
    show_sweep_scores(with_space(document({(5, 0.0): 0.4, (10, 0.0): 0.3})))
    heading, first, second, *_ = capsys.readouterr().out.splitlines()
    names = ["fd_effnet_lite0_64", "excess", "kd_effnet_lite0_64"]
    assert heading.split() == ["STEPS", "ETA", *names, "fd_effnet_lite0_96", "kd_effnet_lite0_96"]
    assert first.split() == ["5", "0", "400", "375", "0.4", "800", "0.8"]
    assert second.split() == ["10", "0", "300", "275", "0.3", "600", "0.6", "*"]
    show_sweep_scores(document({(10, 0.0): 0.3}))
    assert "96" not in capsys.readouterr().out


EARLY = "ema:0.1@4"


@pytest.mark.slow
def test_an_early_snapshot_guides_cells_images_and_the_registered_model(project, invoke) -> None:
    def run(*arguments: str) -> str:
        done = invoke(*arguments)
        assert done.code == 0, done.err
        return done.out

    def guided_by(guide: str) -> np.ndarray:
        run("sample", "--num", "3", "--steps", "4", "--guidance", "1", "--guide", guide, "--out", "a.npz")
        return np.load("a.npz")["arr_0"].astype(int)

    changes = {
        "train": {"ema_profiles": {"sigma_rel": [0.1], "every": 4}},
        "sample": {"guidance": 1.0},
        "sweep": {"steps": [2], "eta": [0.0], "guide": [None, EARLY]},
    }
    write_params(project, **changes)
    for stage in ("data", "reference", "train", "sample", "evaluate"):
        run("stage", stage)
    early = read_artefact(snapshot_path(project / "models/ema", 0.1, 4))
    free, guided = "steps2-eta0", "steps2-eta0-guide_ema_0.1_4"
    cards = {name: open_store(project / "samples" / name).meta["card"] for name in (free, guided)}
    assert (cards[free].get("guide"), cards[free]["nfe"]) == (None, 4)
    assert cards[guided]["guide_sha256"] == early.model_sha256
    assert (cards[guided]["guide"], cards[guided]["guidance_rule"]) == (EARLY, "autoguidance")
    scores = json.loads((project / "metrics/scores.json").read_text())
    assert {name: cell.get("guide") for name, cell in scores["cells"].items()} == {free: None, guided: EARLY}

    tracked = str(snapshot_path(project / "models/ema", 0.1, 4))
    assert np.abs(guided_by(tracked) - guided_by(EARLY)).max() <= 1
    out = run("sweep", "--guide", f"{EARLY},{tracked}", "--guidance", "0,2", "--json")
    assert len(json.loads(out)["cells"]) == 3, "without guidance no guide has an effect"
    write_params(project, **{**changes, "sweep": {**changes["sweep"], "guide": ["ema:0.1@5"]}})
    assert_refused(invoke("stage", "sample"), "keeps one every 4 steps")
