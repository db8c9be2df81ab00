"""Compiled networks: of the first shape alone, once a model and device, and without where torch refuses."""

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch

from cli.actions.image_files import frames_of
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.training_scores import ValidationImages, ValidationScorer
from diffusion.images.pixels import to_nhwc
from diffusion.model import compiled as module
from diffusion.model import precision
from diffusion.model.compiled import (
    GRAPHS,
    MIN_COMPILED_PASSES,
    CompiledNetwork,
    compile_modes,
    compile_network,
    is_worth_compiling,
)
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import autocast, freeze, memory_layout
from diffusion.protocol.settings import SampleSettings
from diffusion.sample import cell_images
from diffusion.sample import generate as sampling
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.system.errors import DiffctlWarning
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")


def asked(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 1, 8, 8), torch.full((rows,), 7), torch.zeros(rows, dtype=torch.int64)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of a compiled network had, a list; 0 is a compilation."""
    seen: list[int] = []

    def compile_(network, *, dynamic, mode):
        assert dynamic is False
        assert mode is None
        seen.append(0)

        def fast(x, t, labels):
            seen.append(len(x))
            return network(x, t, labels)

        return fast

    monkeypatch.setattr(torch, "compile", compile_)
    return seen


def test_the_rule_knows_the_device_and_the_passes() -> None:
    assert is_worth_compiling(MIN_COMPILED_PASSES, torch.device("cuda"))
    assert not is_worth_compiling(MIN_COMPILED_PASSES - 1, torch.device("cuda"))
    assert not is_worth_compiling(10**9, CPU)
    assert not is_worth_compiling(10**9, torch.device("mps"))


def test_only_the_shape_that_repeats_is_compiled(compilations) -> None:
    network = network_of(spec_of())
    fast = CompiledNetwork(network)
    for rows in (4, 3, 4, 4):
        arguments = asked(rows)
        assert torch.equal(fast(*arguments), network(*arguments))
    assert compilations == [0, 4, 4, 4]


@pytest.mark.parametrize("rounding", ["fp32", "bf16"])
def test_a_model_is_compiled_once_for_all_its_units(compilations, rounding) -> None:
    network = freeze(network_of(spec_of()))
    for _ in range(3):
        autocast(network, rounding, fast=True)(*asked(2))
        autocast(network, rounding)(*asked(2))
    assert compilations == [0, 2, 2, 2]


def test_what_is_kept_of_a_network_ends_with_it(compilations) -> None:
    network = network_of(spec_of())
    kept = ref(compile_network(network))
    assert kept() is compile_network(network)
    del network
    gc.collect()
    assert kept() is None


def test_where_torch_refuses_the_network_is_computed_as_it_stands(monkeypatch) -> None:
    def refuse(*_, **__):
        raise RuntimeError("torch.compile is not supported on Python 4\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    network = network_of(spec_of())
    fast, arguments = CompiledNetwork(network), asked(2)
    with pytest.warns(DiffctlWarning, match=r"cannot be compiled \(torch.compile is not supported on"):
        assert torch.equal(fast(*arguments), network(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast(*arguments), network(*arguments))


def test_later_errors_are_the_networks_own(compilations) -> None:
    network = network_of(spec_of())
    fast, arguments = CompiledNetwork(network), asked(2)
    fast(*arguments)
    network.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        fast(*arguments)


def test_graphs_are_for_a_gpus_main_thread() -> None:
    gpu = torch.device("cuda")
    assert compile_modes(gpu) == [GRAPHS, None]
    assert compile_modes(CPU) == [None]
    with ThreadPoolExecutor(1) as other:
        assert other.submit(compile_modes, gpu).result() == [None]


@pytest.fixture
def as_graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """As on a GPU, with a compiler whose graph writes each answer over the one before: its passes by mode."""
    passes: list[tuple[str | None, int]] = []

    def compile_(network, *, dynamic, mode):
        kept: list[torch.Tensor] = []

        def fast(x, t, labels):
            passes.append((mode, sum(mode == one for one, _ in passes) + 1))
            if passes[-1] == fast.fails:
                raise fast.error
            said = network(x, t, labels)
            if mode != GRAPHS:
                return said
            kept[:] = kept or [torch.empty_like(said)]
            return kept[0].copy_(said)

        fast.fails, fast.error = compile_.fails, compile_.error
        return fast

    compile_.fails, compile_.error = None, None
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(module, "compile_modes", lambda device: [GRAPHS, None])
    return passes


def test_what_a_graph_gave_is_not_written_over(as_graphs) -> None:
    network = network_of(spec_of())
    fast, several = CompiledNetwork(network), [asked(2) for _ in range(5)]
    found = [fast(*arguments) for arguments in several]
    assert all(torch.equal(a, network(*b)) for a, b in zip(found, several, strict=True))
    assert as_graphs == [(GRAPHS, number) for number in range(1, 6)]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError, AssertionError, torch.OutOfMemoryError])
def test_a_graph_that_cannot_be_recorded_is_done_without(as_graphs, number, error) -> None:
    torch.compile.fails, torch.compile.error = (GRAPHS, number), error("no capture\nand more")
    network = network_of(spec_of())
    fast, several = CompiledNetwork(network), [asked(2) for _ in range(5)]
    with pytest.warns(DiffctlWarning, match=r"cannot be launched as a CUDA graph \(no capture\)"):
        found = [fast(*arguments) for arguments in several]
    assert all(torch.equal(a, network(*b)) for a, b in zip(found, several, strict=True))
    assert [mode for mode, _ in as_graphs] == [GRAPHS] * number + [None] * (6 - number)


def test_an_error_of_a_graph_that_went_well_is_the_networks_own(as_graphs) -> None:
    torch.compile.fails, torch.compile.error = (GRAPHS, 4), RuntimeError("device lost")
    fast, arguments = CompiledNetwork(network_of(spec_of())), asked(2)
    for _ in range(3):
        fast(*arguments)
    with pytest.raises(RuntimeError, match="device lost"):
        fast(*arguments)


@pytest.fixture
def rule(monkeypatch) -> list[int]:
    """Compiling pays; for how many passes it was asked."""
    passes: list[int] = []
    monkeypatch.setattr(sampling, "is_worth_compiling", lambda count, device: passes.append(count) or True)
    return passes


def test_a_cell_of_many_passes_is_made_compiled(compilations, rule, monkeypatch, tmp_path) -> None:
    """A runner asks the rule for all its shards together; the images are the same."""
    model = LoadedModel(network_of(spec_of()), artefact_of(spec_of()))
    settings, shards = SampleSettings(steps=3, seed=2), [range(0, 4), range(4, 8), range(8, 10)]
    monkeypatch.setattr(cell_images, "load_model", lambda path, device: model)
    monkeypatch.setattr(cell_images, "sha256_file", lambda path: "0")
    made = torch.cat(
        [torch.from_numpy(images) for _, images in cell_images.run_locally(tmp_path, settings, shards)]
    )
    parts = [
        generate(model, settings, part, mixed_condition(model.artefact, settings, part), CPU)
        for part in shards
    ]
    assert torch.equal(made.permute(0, 3, 1, 2), torch.cat(parts))
    assert rule == [9]
    assert compilations == [0, 4, 4, 4, 4, 4, 4]


def test_many_images_of_the_command_are_made_compiled(compilations, rule) -> None:
    """By the same rule, asked once for all of them."""
    model, settings = LoadedModel(network_of(spec_of()), artefact_of(spec_of())), SampleSettings(steps=3)
    images, _ = frames_of(model, None, settings, range(10), None, 4, False)
    plain = generate(model, settings, range(4), mixed_condition(model.artefact, settings, range(4)), CPU)
    assert np.array_equal(images[-1][:4], to_nhwc(plain))
    assert rule == [9]
    assert compilations == [0, 4, 4, 4, 4, 4, 4]


def test_many_images_that_are_scored_while_it_trains_are_made_compiled(compilations, rule) -> None:
    """Of a copy, with which all that was compiled goes."""
    network, artefact = network_of(spec_of()), artefact_of(spec_of())
    images = ValidationImages(SampleSettings(steps=3), 10, 4)
    scorer = ValidationScorer.__new__(ValidationScorer)
    scorer.images, scorer.features_at_once, scorer.extractor = images, 10, load_extractor("effnet-lite0-64")
    scorer.scorer, seen = SimpleNamespace(scores=lambda found: {"found": float(found.features.sum())}), []
    first = scorer.scores(network, artefact, lambda done, total: seen.append(done))
    assert rule == [9]
    assert compilations == [0, 4, 4, 4, 4, 4, 4], "which a callback leaves whole"
    assert "_compiled_by_device" not in network.__dict__
    assert scorer.scores(network, artefact, lambda done, total: None) == first


def test_a_rounded_copy_lies_in_memory_as_its_device_wants(monkeypatch) -> None:
    network, arguments = network_of(spec_of(channels=16)).requires_grad_(False), asked(2)
    outputs = []
    for tiles, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert precision.to_bf16(network).stem.weight.is_contiguous(memory_format=layout)
        outputs.append(autocast(network, "bf16")(*arguments))
    assert torch.allclose(*outputs, atol=0.05)
    assert memory_layout("bf16", CPU) == torch.contiguous_format, "in which it trains, whatever the CPU"
