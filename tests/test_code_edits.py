"""Code is a dependency: digests of code, and edits in a clone with real DVC."""

import ast
import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from diffusion.code_digest import (
    changed_modules,
    code_of,
    is_neutral,
    module_digests,
    modules_of,
    normalized_syntax,
)
from diffusion.data.data_config import SOURCES
from diffusion.evaluate.features.reference_features import extraction_code
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.network_registry import MODELS
from diffusion.process.loss_registry import LOSS_WEIGHTS, OBJECTIVES, TIME_DISTRIBUTIONS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampling_card import sampling_code, shards_folder
from diffusion.system.registry import reference_module
from diffusion.train.classifier_training import ClassifierPlan
from diffusion.train.optimizers.lr_schedule import LR_SCHEDULES
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS
from diffusion.train.plan import DenoiserPlan, training_code
from flows.stage_code import STAGES
from tests.conftest import start_python
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.small import own_code, small_project
from tests.helpers.waiting import made_once, wait_until

CODE = """
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from somewhere import Thing

TABLE = {"a": (1, -2.5, 3j, b"x", None, ...), f"{1 + 1!r:>{3}}": [*range(3)]}


class Schedule:
    \"\"\"A docstring.\"\"\"

    limit: float = 5.0

    @property
    def first(self, /, a: int = 1, *rest, key=None, **more) -> "Thing":
        \"\"\"Another one.\"\"\"
        if (n := len(rest)) > 2 and not key:
            raise ValueError(f"{n} is too much")
        warnings.warn("be careful", stacklevel=2)
        match a:
            case {"x": [1, *others]} | (2 as others):
                return lambda x: x if x else ~x
            case _:
                del n
        try:
            with open("f") as f, open("g"):
                yield from (i async for i in f)
        except* OSError:
            pass
        return [i for j in rest for i in j if i][1:2, ...] @ self.limit
"""
NO_OPTIONS = "diffusion.system.section"
GOLDEN = "5a74bffc1d18b02d"  # digest of CODE's normalized syntax on every Python


def test_normalized_syntax_is_equal_on_every_python() -> None:
    assert hashlib.sha256(normalized_syntax(ast.parse(CODE)).encode()).hexdigest()[:16] == GOLDEN


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("A docstring.", "Other words.", True),
        ('warnings.warn("be careful", stacklevel=2)', 'warnings.warn("careful")', True),
        ('        warnings.warn("be careful", stacklevel=2)\n', "", True),
        ("from somewhere import Thing", "from elsewhere import Thing", True),
        ("(1, -2.5, 3j,", "(\n    1,\n    -2.50,\n    3j,", True),
        ("[i for j in rest for i in j if i]", "[(i) for j in rest for i in (j) if i]", True),
        ("5.0", "5.1", False),
        ("> 2", ">= 2", False),
        ("a: int = 1", "a: int = 2", False),
        ("ValueError", "KeyError", False),
        ('b"x"', '"x"', False),
    ],
)
def test_only_code_that_may_change_a_result_changes_the_digest(old: str, new: str, is_same: bool) -> None:
    assert old in CODE
    digests = [normalized_syntax(ast.parse(code)) for code in (CODE, CODE.replace(old, new))]
    assert (digests[0] == digests[1]) is is_same


def test_module_is_neutral_by_package_or_marker() -> None:
    assert all(map(is_neutral, ("diffusion.system.locks", "diffusion.layout", "diffusion.model.model_file")))
    assert not is_neutral("diffusion.model.unet")


def test_all_imports_are_followed_except_for_type_checking() -> None:
    code = "def f():\n from diffusion.model import unet\nif TYPE_CHECKING:\n import diffusion.train.loop"
    assert modules_of(ast.parse(code)) == {"diffusion.model.unet"}
    names = {f"diffusion.model.{name}" for name in ("unet", "blocks", "unet_config")}
    assert names <= module_digests("diffusion.model.unet").keys()


def test_training_code_excludes_modules_of_other_objectives() -> None:
    kinds = DenoiserPlan, ClassifierPlan
    codes = [training_code(kind, ProcessConfig(), spec_of()) for kind in kinds]
    model, classifier = ({name for name in code if " " not in name} for code in codes)
    entries = {name.rpartition(" ")[0].partition(" ")[2] for name in codes[0].keys() - codes[1].keys()}
    assert entries == {"", "process.loss", "process.t_sampler", "process.weighting"}
    assert model - classifier == {"diffusion.process.losses"}
    assert classifier - model == {"diffusion.train.classifier_training", "diffusion.model.classifier"}
    names = {
        f"train.{name}"
        for name in (
            "loop",
            "initial_state",
            "forward_passes",
            "batch",
            "train_step",
            "optimizers.lr_schedule",
        )
    }
    names |= {"process.discrete", "images.pixels", "model.blocks"}
    assert {f"diffusion.{name}" for name in names} <= model & classifier
    others = {"downloads", "sample", "evaluate", "report", "analysis"}
    assert not {name.split(".")[1] for name in model} & others


@pytest.mark.parametrize("entry", [*TIME_DISTRIBUTIONS.values(), *LOSS_WEIGHTS.values()])
def test_code_of_an_entry_contains_the_defaults_of_its_options(entry) -> None:
    module = reference_module(entry.options)
    assert module in (NO_OPTIONS, *module_digests(entry.module))


def test_sampling_code_contains_only_the_sampler_of_the_cell() -> None:
    settings = (SampleSettings(sampler=name) for name in ("ddim", "dpm-solver++"))
    ddim, solver = (set(sampling_code(one, NetworkArtefacts(artefact_of(spec_of())))) for one in settings)
    entry = "diffusion.protocol.samplers sample.sampler dpm-solver++"
    assert solver - ddim == {"diffusion.sample.dpm_solver", "diffusion.sample.ode_step", entry}
    names = ("sample.generate", "sample.sampler", "model.blocks", "process.noise")
    assert {f"diffusion.{name}" for name in names} <= ddim
    assert not [name for name in ddim if name.startswith("diffusion.train.")]


PROCESS = ProcessConfig(
    schedule="linear", variance="small", loss="simple", weighting="min-snr", prediction="velocity"
)
SETTINGS = SampleSettings(sampler="euler", spacing="karras")


def keys() -> list[object]:
    """Return the keys of a training, of a cell, of prepared data and of a reference."""
    spec = spec_of(out_channels=1)
    networks = NetworkArtefacts(artefact_of(spec, process=PROCESS))
    data = code_of(["diffusion.data.prepare"], [(SOURCES, "cifar10")])
    training = training_code(DenoiserPlan, PROCESS, spec, "mine")
    return [training, shards_folder(SETTINGS, networks), data, extraction_code(EXTRACTORS["effnet-lite0-64"])]


EDITED_ENTRIES = [  # other code of the same module, or another field; whether it changes each key
    (LOSS_WEIGHTS, "min-snr", {"builder": LOSS_WEIGHTS["min-snr-soft"].builder}, [True, False, False, False]),
    (LOSS_WEIGHTS, "min-snr", {"source": "another paper"}, [False, False, False, False]),
    (LOSS_WEIGHTS, "edm", {"builder": LOSS_WEIGHTS["none"].builder}, [False, False, False, False]),
    (OBJECTIVES, "simple", {"builder": OBJECTIVES["hybrid"].builder}, [True, False, False, False]),
    (TIME_DISTRIBUTIONS, "uniform", TIME_DISTRIBUTIONS["log-normal"].__dict__, [True, False, False, False]),
    (OPTIMIZERS, "adamw", {"builder": OPTIMIZERS["radam"].builder}, [True, False, False, False]),
    (LR_SCHEDULES, "mine", LR_SCHEDULES["linear"].__dict__, [True, False, False, False]),
    (PROCESSES, "linear", PROCESSES["cosine"].__dict__, [True, True, False, False]),
    (PREDICTIONS, "velocity", PREDICTIONS["flow"].__dict__, [True, True, False, False]),
    (MODELS, "unet", {"builder": "diffusion.model.unet:Encoder"}, [True, True, False, False]),
    (SAMPLERS, "euler", {"builder": SAMPLERS["heun"].builder}, [False, True, False, False]),
    (SPACINGS, "karras", {"real": SPACINGS["uniform"].real}, [False, True, False, False]),
    (GUIDANCE_RULES, SETTINGS.rule, {"nfe": 1}, [False, True, False, False]),
    (SOURCES, "cifar10", {"builder": "diffusion.data.sources.cifar:Other"}, [False, False, True, False]),
    (EXTRACTORS, "effnet-lite0-64", {"size": 32}, [False, False, False, True]),
]


@pytest.mark.parametrize(("registry", "name", "fields", "changes"), EDITED_ENTRIES)
def test_an_edited_entry_changes_the_keys_of_what_uses_it(
    registry, name, fields, changes, monkeypatch
) -> None:
    monkeypatch.setitem(LR_SCHEDULES.data, "mine", LR_SCHEDULES["cosine"])
    before = keys()
    monkeypatch.setitem(registry.data, name, replace(registry[name], **fields))
    assert [one != other for one, other in zip(before, keys(), strict=True)] == changes


def test_changed_modules_are_listed_as_files() -> None:
    old = {"diffusion.model.unet": "1", "diffusion.train.batch": "2", "diffusion.gone": "3"}
    new = {"diffusion.model.unet": "1", "diffusion.train.batch": "4", "plugins.__init__ model.name tiny": "5"}
    assert changed_modules(old, new) == ["gone.py", "train/batch.py", "plugins/__init__.py (model.name tiny)"]


def test_model_identity_depends_on_weights_and_settings_not_on_training_code(tmp_path: Path) -> None:
    spec = spec_of()
    weights, path = network_of(spec).state_dict(), tmp_path / "m.safetensors"
    code = {"step": 0, "digest": "a" * 16, "torch": "2.13.0"}

    def identity(weights=weights, **changes) -> tuple[str, Path]:
        save_artefact(path, weights, artefact_of(spec, **changes))
        artefact = read_artefact(path)
        return artefact.model_sha256, shards_folder(SampleSettings(), NetworkArtefacts(artefact))

    base = identity(code=(code,))
    assert identity(code=(code, {**code, "step": 5, "digest": "b" * 16})) == base
    assert identity(code=()) == base
    versions = ({**code, "diffctl": version} for version in ("", "0.2.0", "9.0.0"))
    first, *others = (artefact_of(spec, code=(since,), train={"seed": 0}) for since in versions)
    assert [one.training for one in others] == [first.training] * 2  # so that seeds of two versions compare
    assert first.stored()["code"] == [code]  # as files before 0.2.0
    assert others[0].stored()["code"] == [{**code, "diffctl": "0.2.0"}]
    assert identity(timesteps=50)[0] != base[0]
    other = {name: tensor + 1 if name == "stem.bias" else tensor for name, tensor in weights.items()}
    assert identity(other)[0] != base[0]


class Edit(NamedTuple):
    """A replacement in a file."""

    file: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        text = (folder / self.file).read_text()
        assert self.old in text
        (folder / self.file).write_text(text.replace(self.old, self.new))

    def revert(self, folder: Path) -> None:
        self._replace(old=self.new, new=self.old).apply(folder)


LOSS = Edit("diffusion/process/losses.py", "(target - predicted).square()", "(target - predicted).abs()")
SAMPLER = Edit("diffusion/sample/ddim.py", "return x_prev, x0_hat\n", "return 1.1 * x_prev, x0_hat\n")
EXTRACTOR = Edit("diffusion/evaluate/features/effnet.py", "- 127) / 128", "- 126) / 128")


def run_python(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python in the folder, with the folder's code, with stderr on stdout."""
    env = {**own_code(folder), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return start_python(folder, *arguments, env=env, stderr=subprocess.STDOUT)


def finished(process: "subprocess.Popen[str]") -> str:
    """Return the output of a process that must succeed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def results(folder: Path) -> dict[str, object]:
    """Return the outputs of every stage in dvc.lock."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(stages) == {"code", *STAGES}
    return {name: [(out["path"], out["md5"]) for out in stages[name]["outs"]] for name in STAGES}


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run."""

    def make(folder: Path) -> None:
        small_project(folder / "project", sample={"num_images": 12})
        finished(run_python(folder / "project", "-m", "dvc", "repro"))

    return made_once(tmp_path_factory, "edits", make) / "project"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the original."""
    return shutil.copytree(original, tmp_path / "project")


@pytest.mark.long
@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (LOSS, ("train", "sample", "evaluate", "report")),
        (SAMPLER, ("sample", "evaluate", "report")),
        (EXTRACTOR, ("reference", "evaluate", "report")),
    ],
    ids=["loss", "sampler", "extractor"],
)
def test_edit_reruns_exactly_the_affected_stages(folder: Path, edit: Edit, changes: tuple[str, ...]) -> None:
    before = results(folder)
    edit.apply(folder)
    output = finished(run_python(folder, "-m", "dvc", "repro"))
    after = results(folder)
    assert tuple(stage for stage in STAGES if after[stage] != before[stage]) == changes
    restart = "the training's code has changed in process/losses.py since step 12"
    assert (restart in output) == (edit is LOSS)


OWN_ENTRY = """from diffusion.protocol.samplers import SAMPLERS, SamplerEntry
SAMPLERS["mine"] = SamplerEntry("plugins.sample.mine:build")
"""
OWN, ENTRIES = "plugins/sample/mine.py", "plugins/__init__.py"
STAGES_OF_EDITS = [  # the stages that DVC runs after each edit, as in docs/reliability.md
    (Edit(LOSS.file, "(target - predicted)", "(target - predicted  # a comment\n)"), set()),
    (Edit("diffusion/version.py", "VERSION = ", "VERSION = '1' + "), set()),
    (Edit(OWN, "= 1", "= 1  # a comment"), set()),
    (Edit(OWN, "= 1", "= 2"), {"sample"}),
    (Edit(ENTRIES, "mine:build", "mine:other"), {"sample"}),
    (LOSS, {"train", "sample"}),
    (SAMPLER, {"sample"}),
    (EXTRACTOR, {"reference", "evaluate"}),
    (Edit("diffusion/report/page.css", "}", "} "), {"report"}),
    (Edit("diffusion/papers/ddim.yaml", "figures:", "figures: "), {"report"}),
]


@pytest.mark.slow
def test_digests_of_stages_change_where_the_docs_say(tmp_path: Path) -> None:
    folder = small_project(tmp_path)
    (folder / ENTRIES).write_text(OWN_ENTRY)
    (folder / OWN).write_text("build = 1\n")

    def digests() -> dict[str, str]:
        finished(run_python(folder, "-m", "cli.entry", "stage", "code"))
        return dict(yaml.safe_load((folder / "code.yaml").read_text()))

    before = digests()
    for edit, wanted in STAGES_OF_EDITS:
        edit.apply(folder)
        after = digests()
        assert {stage for stage in before if after[stage] != before[stage]} == wanted, edit
        edit.revert(folder)


@pytest.mark.long
def test_keep_resumes_with_changed_code_and_the_model_records_both_versions(folder: Path) -> None:
    first = read_artefact(folder / "models/model.safetensors")
    rate = "rate = rate * (step + 1)"
    Edit("diffusion/train/optimizers/lr_schedule.py", rate, rate.replace("= rate", "= 3 * rate")).apply(
        folder
    )
    output = finished(run_python(folder, "-m", "cli.entry", "stage", "train", "--keep"))
    assert "resuming after step 12 of 12" in output
    assert "the code has changed since these steps" in output
    model = read_artefact(folder / "models/model.safetensors")
    assert [since.step for since in model.code] == [0, 12]
    assert model.code[0] == first.code[0]
    assert model.model_sha256 == first.model_sha256


# What a stage runs before it trains: it waits for the edits of the test.
WAIT = """
    from pathlib import Path
    from time import sleep

    Path("begun").touch()
    while not Path("edited").exists():
        sleep(0.01)
"""


def edited_meanwhile(folder: Path, *edits: Edit) -> tuple[int, str]:
    """Make edits while `dvc repro train` trains; return the exit code and the output."""
    for name in ("begun", "edited"):
        (folder / name).unlink(missing_ok=True)
    process = run_python(folder, "-m", "dvc", "repro", "--single-item", "train")
    wait_until(lambda: (folder / "begun").exists() or process.poll() is not None, 120)
    for edit in edits:
        edit.apply(folder)
    (folder / "edited").touch()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


RUN_TRAIN = "import asyncio; from flows.pipeline_run import run_step; asyncio.run(run_step('train'))"
STEPS = "MAX_BAD_STEPS = 5"


@pytest.mark.long
def test_edits_while_a_stage_runs_are_not_recorded_as_its_inputs(folder: Path) -> None:
    """Also a model that DVC recorded with another rate is trained again."""
    for made in ("runs/train", ".dvc/cache/runs"):
        shutil.rmtree(folder / made)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {"data": lock["stages"]["data"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    begin = "    training = trainer.lead("
    Edit("cli/stages/train_stage.py", begin, f"{WAIT}\n{begin}").apply(folder)
    rate = Edit("params.yaml", "rate: 0.002", "rate: 0.5")
    steps = Edit("diffusion/train/loop.py", STEPS, "MAX_BAD_STEPS = 6")
    code, output = edited_meanwhile(folder, rate, steps)
    assert code != 0
    assert "changed while the stage train ran (train.lr.rate 0.002 → 0.5)" in output
    assert "train" not in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    rate.revert(folder)
    steps.revert(folder)
    code, output = edited_meanwhile(folder, steps)  # after it was loaded
    assert code == 0, output
    assert "resuming after step 12 of 12" in output
    steps.revert(folder)

    rate.apply(folder)
    finished(run_python(folder, "-m", "dvc", "commit", "--force", "train"))
    output = finished(run_python(folder, "-c", RUN_TRAIN))
    assert "==> train: up to date\n" in output
    assert "other settings (train.lr.rate 0.002 → 0.5): training again" in output
    assert "train.lr.rate" not in finished(run_python(folder, "-c", RUN_TRAIN))

    Edit("params.yaml", "rate: 0.5", "rate: 0.4").apply(folder)
    steps.apply(folder)  # and code.yaml is not written again
    code, output = edited_meanwhile(folder)
    assert code != 0
    assert "the code has changed since code.yaml was written: run `dvc repro` again" in output
