"""Training and sampling create no float64 tensors on devices without float64, such as Apple GPUs."""

import pytest
import torch

from diffusion.process.noise_process import build_process
from diffusion.process.objective import Batch
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.plan import build_task
from diffusion.train.train_step import accumulate_gradients
from tests.helpers.no_sync_tensors import Float64, no_float64
from tests.helpers.trainings import CPU, plan_of
from tests.train.test_classifier import resolved


def test_float64_tensors_are_detected():
    with no_float64() as device:
        with pytest.raises(Float64):
            torch.ones(3, device=device).double()
        with pytest.raises(Float64):
            torch.ones(3, dtype=torch.float64).to(device)


def to_device(device: torch.device, batch: Batch) -> Batch:
    """Move the batch to the device, except its timesteps, as `draw_batch` does for such a device."""
    return Batch(*(part if part is None or part is batch.t else part.to(device) for part in batch))


@pytest.mark.parametrize(
    "process",
    [
        {"loss": "hybrid"},
        {"loss": "vlb"},
        {"loss": "hybrid", "prediction": "velocity", "weighting": "min-snr"},
        {"schedule": "edm"},
        {"schedule": "flow", "weighting": "min-snr-soft"},
        "classifier",
    ],
    ids=str,
)
def test_training_step_creates_no_float64(store, process):
    if process == "classifier":
        plan = resolved(store, precision="fp32")
    else:
        plan = plan_of(store, train={"precision": "fp32", "microbatch": 3}, process=process)
    task, data, built = build_task(plan), ImageLoader(store, CPU), build_process(plan.process)
    batch = draw_batch(plan, task.time_sampler(built), data, 0)
    with no_float64() as device:
        network = task.network(plan.network).to(device)
        passes = ForwardPasses(plan, network, task.objective(built), ProcessGroup(device))
        losses, *numbers = accumulate_gradients(passes, to_device(device, batch), 0)
    assert {part.device for part in (*losses.values(), *numbers)} == {device}
