"""Code digests: the changes that affect them, and the modules that identify a training or a cell."""

import ast
import hashlib
from pathlib import Path

import pytest

from diffusion.code_digest import changed_modules, is_neutral, module_digests, modules_of, normalized_syntax
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.process.loss_registry import LOSS_WEIGHTS, TIME_DISTRIBUTIONS
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import sampling_code, shards_folder
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.system.registry import reference_module
from diffusion.train.classifier_training import ClassifierPlan
from diffusion.train.plan import DenoiserPlan, training_code
from tests.helpers.networks import artefact_of, network_of, spec_of

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
    model, classifier = (set(training_code(kind, ProcessConfig(), spec_of())) for kind in kinds)
    assert model - classifier == {"diffusion.train.denoiser_objective", "diffusion.process.losses"}
    assert classifier - model == {"diffusion.train.classifier_training", "diffusion.model.classifier"}
    names = {f"train.{name}" for name in ("loop", "gradients", "batch", "train_step", "lr_schedule")}
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
    ddim, solver = (set(sampling_code(one, artefact_of(spec_of()))) for one in settings)
    assert solver - ddim == {"diffusion.sample.dpm_solver", "diffusion.sample.ode_step"}
    names = ("sample.generate", "sample.sampler", "model.blocks", "process.noise")
    assert {f"diffusion.{name}" for name in names} <= ddim
    assert not [name for name in ddim if name.startswith("diffusion.train.")]


def test_changed_modules_are_listed_as_files() -> None:
    old = {"diffusion.model.unet": "1", "diffusion.train.batch": "2", "diffusion.gone": "3"}
    new = {"diffusion.model.unet": "1", "diffusion.train.batch": "4", "diffusion.new": "5"}
    assert changed_modules(old, new) == ["gone.py", "new.py", "train/batch.py"]


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
    assert identity(timesteps=50)[0] != base[0]
    other = {name: tensor + 1 if name == "stem.bias" else tensor for name, tensor in weights.items()}
    assert identity(other)[0] != base[0]
