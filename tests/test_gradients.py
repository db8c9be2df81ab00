"""A step's gradient: micro-batches by the memory, compilation or none, and nothing that reads the device."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusion.checkpoint import Artefact
from diffusion.data.loader import Batches
from diffusion.data.store import open_store
from diffusion.distributed import Ranks
from diffusion.draws import Batch, draw_batch
from diffusion.errors import DiffctlError, DiffctlWarning
from diffusion.gradients import Gradients
from diffusion.memory import STEP_SHARE, fitting_microbatch, step_bytes
from diffusion.timesteps import UniformSampler
from diffusion.training import TrainState, new_state, train_step
from diffusion.unet import UNet
from tests.networks import spec_of
from tests.test_training import artefact_of

CPU = torch.device("cpu")
FP32 = {"precision": "fp32", "p_uncond": 0.0}


def begun(store_path: Path, **train: Any) -> tuple[Artefact, TrainState, Batch]:
    """A training of one step's standing, and its next batch."""
    store = open_store(store_path)
    artefact = artefact_of(store, train={**FP32, **train})
    state = new_state(artefact, CPU)
    return artefact, state, draw_batch(artefact, state.timesteps, Batches(store, CPU), 0)


def gradient(artefact: Artefact, state: TrainState, batch: Batch) -> list[torch.Tensor]:
    state.network.zero_grad()
    Gradients(artefact, state.network, Ranks(CPU))(batch, 0)
    return [parameter.grad.clone() for parameter in state.network.parameters()]


def refuse_more_than(state: TrainState, most: int) -> None:
    """Let the network fail for lack of memory as a GPU would, in the midst of its work."""

    def look(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    state.network.middle.register_forward_pre_hook(look)


@pytest.mark.parametrize(("fits", "found"), [(8, 8), (7, 4), (3, 2), (1, 1)])
def test_auto_halves_until_it_fits_and_the_gradient_is_that_of_such_microbatches(digits_store, fits, found):
    artefact, state, batch = begun(digits_store, batch_size=8, microbatch=found)
    expected = gradient(artefact, state, batch)
    artefact, state, batch = begun(digits_store, batch_size=8, microbatch="auto")
    refuse_more_than(state, fits)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = gradient(artefact, state, batch)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    sizes = [str(warning.message).split()[-2] for warning in said if warning.category is DiffctlWarning]
    assert sizes == [str(size) for size in (4, 2, 1) if size >= found]


@pytest.mark.filterwarnings("ignore::diffusion.errors.DiffctlWarning")
@pytest.mark.parametrize("microbatch", [4, None, "auto"])
def test_out_of_memory_is_a_sentence_that_says_what_to_lower(digits_store, microbatch):
    artefact, state, batch = begun(digits_store, batch_size=8, microbatch=microbatch)
    refuse_more_than(state, 0)
    with pytest.raises(DiffctlError, match=r"lower train\.microbatch") as failure:
        gradient(artefact, state, batch)
    images = {4: 4, None: 8, "auto": 1}[microbatch]
    assert f"a step of {images} images does not fit the memory" in str(failure.value)


def test_the_cpus_allocator_is_understood_too(digits_store):
    artefact, state, batch = begun(digits_store, microbatch=8)
    state.network.middle.register_forward_pre_hook(lambda *_: torch.empty(10**15))
    with pytest.raises(DiffctlError, match="a step of 8 images does not fit the memory"):
        gradient(artefact, state, batch)


def test_other_errors_are_not_taken_for_a_lack_of_memory(digits_store):
    artefact, state, batch = begun(digits_store, microbatch="auto")
    state.network.middle.register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        gradient(artefact, state, batch)


@pytest.mark.parametrize(("images", "fits"), [(1, 1), (7, 8), (100, 99), (100, 26), (13, 0)])
def test_the_cpus_microbatch_is_the_largest_halving_that_fits(images, fits):
    spec = spec_of()
    total = int(step_bytes(spec, fits) / STEP_SHARE) + 1 if fits else 0
    found = fitting_microbatch(spec, images, total)
    assert found <= max(fits, 1)
    size = images
    while size > found:
        assert size > fits
        size = -(-size // 2)
    assert size == found


def test_nothing_in_a_step_reads_a_number_back_from_the_device(digits_store):
    """Fake tensors have no values: whatever asks for one, as `if`, float() and .item() do, fails."""
    artefact, _, batch = begun(digits_store, batch_size=8, microbatch=4)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        network = UNet(artefact.network).train()
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        sampler = UniformSampler(artefact.diffusion.timesteps)
        state = TrainState(artefact, network, UNet(artefact.network), optimizer, sampler)
        gradients = Gradients(artefact, network, Ranks(CPU))
        fake = Batch(*(mode.from_tensor(part) for part in batch if part is not None))
        means = train_step(state, gradients, fake)
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            float(means["loss"])


@pytest.mark.parametrize("weighting", ["none", "min-snr"])
@pytest.mark.parametrize("prediction", ["eps", "velocity"])
def test_nothing_of_the_loss_moves_to_the_host(digits_store, prediction, weighting):
    """Tensors of the meta device cannot be copied to another one."""
    store, meta = open_store(digits_store), torch.device("meta")
    process = {"prediction": prediction, "weighting": weighting}
    artefact = artefact_of(store, train={**FP32, "microbatch": 3}, diffusion=process)
    batch = draw_batch(artefact, UniformSampler(100), Batches(store, CPU), 0)
    gradients = Gradients(artefact, UNet(artefact.network).to(meta), Ranks(meta))
    losses, *_ = gradients(Batch(*(part.to(meta) for part in batch if part is not None)), 0)
    assert {loss.device for loss in losses.values()} == {meta}


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_trained_without(digits_store):
    """Its C++ compiler is missing."""
    torch.compiler.reset()
    artefact, state, batch = begun(digits_store)
    expected = gradient(artefact, state, batch)
    artefact, state, batch = begun(digits_store, compile=True)
    no_compiler = inductor_config.patch({"cpp.cxx": (None, "/nowhere/c++")})
    with no_compiler, pytest.warns(DiffctlWarning, match="the network cannot be compiled"):
        ours = gradient(artefact, state, batch)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_gradient(digits_store):
    artefact, state, batch = begun(digits_store)
    expected = gradient(artefact, state, batch)
    artefact, state, batch = begun(digits_store, compile=True)
    torch.compiler.reset()
    with warnings.catch_warnings(category=DiffctlWarning):
        warnings.simplefilter("error", DiffctlWarning)  # it went without
        ours = gradient(artefact, state, batch)
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
