"""Code digests: the changes that affect them, and the modules that identify a training or a cell."""

import ast
import hashlib
from pathlib import Path

import pytest

from diffusion.code_digest import (
    changed_modules,
    code_digest,
    is_neutral,
    module_digests,
    modules_of,
    normalized_syntax,
)
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
    ("old", "new"),
    [
        ("A docstring.", "Other words."),
        ('warnings.warn("be careful", stacklevel=2)', 'warnings.warn("careful")'),
        ('        warnings.warn("be careful", stacklevel=2)\n', ""),
        ("from somewhere import Thing", "from elsewhere import Thing"),
        ("(1, -2.5, 3j,", "(\n    1,\n    -2.50,\n    3j,"),
        ("[i for j in rest for i in j if i]", "[(i) for j in rest for i in (j) if i]"),
    ],
)
def test_comments_messages_and_layout_do_not_change_the_digest(old: str, new: str) -> None:
    assert old in CODE
    assert normalized_syntax(ast.parse(CODE.replace(old, new))) == normalized_syntax(ast.parse(CODE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5.0", "5.1"),
        ("> 2", ">= 2"),
        ("a: int = 1", "a: int = 2"),
        ("ValueError", "KeyError"),
        ('b"x"', '"x"'),
    ],
)
def test_code_that_may_change_a_result_changes_the_digest(old: str, new: str) -> None:
    assert old in CODE
    assert normalized_syntax(ast.parse(CODE.replace(old, new))) != normalized_syntax(ast.parse(CODE))


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("diffusion.system.locks", True),
        ("diffusion.layout", True),
        ("diffusion.model.model_file", True),
        ("diffusion.model.unet", False),
    ],
)
def test_module_is_neutral_by_package_or_marker(name: str, neutral: bool) -> None:
    assert is_neutral(name) is neutral


def test_all_imports_are_followed_except_for_type_checking() -> None:
    tree = ast.parse(
        "def f():\n    from diffusion.model import unet\nif TYPE_CHECKING:\n    import diffusion.train.loop"
    )
    assert modules_of(tree) == {"diffusion.model.unet"}
    assert {"diffusion.model.unet", "diffusion.model.blocks", "diffusion.model.unet_config"} <= set(
        module_digests("diffusion.model.unet")
    )


def test_training_code_excludes_modules_of_other_objectives() -> None:
    model, classifier = (
        set(training_code(kind, ProcessConfig(), spec_of())) for kind in (DenoiserPlan, ClassifierPlan)
    )
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
    ddim, solver = (
        set(sampling_code(SampleSettings(sampler=name), artefact_of(spec_of())))
        for name in ("ddim", "dpm-solver++")
    )
    assert solver - ddim == {"diffusion.sample.dpm_solver", "diffusion.sample.ode_step"}
    assert {
        "diffusion.sample.generate",
        "diffusion.sample.sampler",
        "diffusion.model.blocks",
        "diffusion.process.noise",
    } <= ddim
    assert not ddim & {"diffusion.train.loop", "diffusion.train.batch", "diffusion.train.train_step"}


def test_changed_modules_are_listed_as_files() -> None:
    old = {"diffusion.model.unet": "1", "diffusion.train.batch": "2", "diffusion.gone": "3"}
    new = {"diffusion.model.unet": "1", "diffusion.train.batch": "4", "diffusion.new": "5"}
    assert changed_modules(old, new) == ["gone.py", "new.py", "train/batch.py"]
    assert code_digest(old) != code_digest(new)


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
