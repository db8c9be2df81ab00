"""Compiled networks: one batch shape, compiled once per model and device, with an eager fallback."""

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from weakref import ref

import pytest
import torch

from diffusion.model import precision
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import (
    GRAPHS,
    CompiledNetwork,
    autocast,
    compile_mode,
    compile_network,
    freeze,
    memory_layout,
)
from diffusion.protocol.settings import SampleSettings
from diffusion.sample import cell_images
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import MIN_COMPILED_PASSES, generate, should_compile
from diffusion.sample.network_files import NetworkArtefacts, NetworkFiles, Recipe
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")


def random_inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 1, 8, 8), torch.full((rows,), 7), torch.zeros(rows, dtype=torch.int64)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of rows of each forward pass of a compiled network; 0 marks a compilation."""
    recorded: list[int] = []

    def compile_(network, *, dynamic, mode):
        assert dynamic is False
        assert mode is None
        recorded.append(0)

        def fast(x, t, labels):
            recorded.append(len(x))
            return network(x, t, labels)

        return fast

    monkeypatch.setattr(torch, "compile", compile_)
    return recorded


@pytest.mark.parametrize(
    ("device", "passes", "expected"),
    [("cuda", MIN_COMPILED_PASSES, True), ("cuda", MIN_COMPILED_PASSES - 1, False), ("mps", 10**9, False)],
)
def test_only_many_passes_on_a_gpu_are_compiled(device, passes, expected) -> None:
    artefact, settings = artefact_of(spec_of()), SampleSettings(steps=1)
    assert should_compile(artefact, settings, passes, torch.device(device)) == expected


def test_only_first_batch_shape_is_compiled(compilations) -> None:
    network = network_of(spec_of())
    fast = CompiledNetwork(network)
    for rows in (4, 3, 4, 4):
        arguments = random_inputs(rows)
        assert torch.equal(fast(*arguments), network(*arguments))
    assert compilations == [0, 4, 4, 4]


@pytest.mark.parametrize("rounding", ["fp32", "bf16"])
def test_autocast_compiles_a_model_once(compilations, rounding) -> None:
    network = freeze(network_of(spec_of()))
    for _ in range(3):
        autocast(network, rounding, fast=True)(*random_inputs(2))
        autocast(network, rounding)(*random_inputs(2))
    assert compilations == [0, 2, 2, 2]


@pytest.mark.slow
def test_compiled_network_is_freed_with_its_network(compilations) -> None:
    network = network_of(spec_of())
    compiled = ref(compile_network(network))
    assert compiled() is compile_network(network)
    del network
    gc.collect()
    assert compiled() is None


def test_cuda_graphs_are_used_only_in_main_thread_on_gpu() -> None:
    gpu = torch.device("cuda")
    assert compile_mode(gpu) == GRAPHS
    assert compile_mode(CPU) is None
    with ThreadPoolExecutor(1) as other:
        assert other.submit(compile_mode, gpu).result() is None


class Graph:
    """A simulated CUDA graph, which overwrites its output and fails at a pass, or in compilation (0)."""

    fails, error = None, Exception()

    def __init__(self, network, *, dynamic, mode):
        assert mode == GRAPHS
        self.network, self.output, self.passes = network, None, 0
        if self.fails == 0:
            raise self.error

    def __call__(self, x, t, labels):
        self.passes += 1
        if self.passes == self.fails:
            raise self.error
        output = self.network(x, t, labels)
        self.output = torch.empty_like(output) if self.output is None else self.output
        return self.output.copy_(output)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch, "compile", Graph)
    monkeypatch.setattr(precision, "compile_mode", lambda device: GRAPHS)
    return monkeypatch


@pytest.mark.parametrize("fails", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError, AssertionError, torch.OutOfMemoryError])
def test_graph_outputs_are_not_overwritten_and_failed_capture_falls_back(graph, fails, error) -> None:
    graph.setattr(Graph, "fails", fails)
    graph.setattr(Graph, "error", error("no capture\nand more"))
    network = network_of(spec_of())
    fast, several = CompiledNetwork(network), [random_inputs(2) for _ in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [fast(*arguments) for arguments in several]
    assert all(torch.equal(a, network(*b)) for a, b in zip(found, several, strict=True))
    assert ["(no capture)" in str(one.message) for one in caught] == [True] * (fails is not None)


def test_errors_after_graph_capture_propagate(graph) -> None:
    graph.setattr(Graph, "fails", 4)
    graph.setattr(Graph, "error", RuntimeError("device lost"))
    fast, arguments = CompiledNetwork(network_of(spec_of())), random_inputs(2)
    for _ in range(3):
        fast(*arguments)
    with pytest.raises(RuntimeError, match="device lost"):
        fast(*arguments)


def test_cell_images_use_compiled_network(compilations, monkeypatch, tmp_path) -> None:
    """A runner decides once for all its shards. The images equal those of the eager network."""
    model = LoadedModel(network_of(spec_of()), artefact_of(spec_of()))
    settings, shards = SampleSettings(steps=3, seed=2), [range(0, 4), range(4, 8), range(8, 10)]
    monkeypatch.setattr(cell_images, "load_network", lambda *_: model)
    recipe, counts = Recipe(settings, NetworkFiles(tmp_path), NetworkArtefacts(model.artefact)), []
    monkeypatch.setattr(cell_images, "should_compile", lambda *arguments: counts.append(arguments[2]) or True)
    with cell_images.LocalRunner() as run:
        made = [torch.from_numpy(images) for _, images in run(recipe, shards)]
    generated = torch.cat(made)
    conditions = [mixed_condition(model.artefact, settings, part) for part in shards]
    expected = [generate(model, settings, *one, CPU) for one in zip(shards, conditions, strict=True)]
    assert torch.equal(generated.permute(0, 3, 1, 2), torch.cat(expected))
    assert counts == [3]
    assert compilations == [0, 4, 4, 4, 4, 4, 4]


def test_bf16_copy_uses_memory_layout_of_device(monkeypatch) -> None:
    network, arguments = network_of(spec_of(channels=16)).requires_grad_(False), random_inputs(2)
    outputs = []
    for tiles, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert precision.to_bf16(network).stem.weight.is_contiguous(memory_format=layout)
        outputs.append(autocast(network, "bf16")(*arguments))
    assert torch.allclose(*outputs, atol=0.05)
    assert memory_layout("bf16", CPU) == torch.contiguous_format, "training uses this layout on every CPU"
