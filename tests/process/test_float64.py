"""Training and sampling create no float64 tensors on devices without float64, such as Apple GPUs."""

import pytest
import torch

from diffusion.process.noise_process import build_process
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.objective import Batch
from diffusion.train.plan import build_objective
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
    objective, data = build_objective(plan), ImageLoader(store, CPU)
    batch = draw_batch(plan, objective.time_sampler(build_process(plan.process)), data, 0)
    with no_float64() as device:
        network = objective.network(plan.network).to(device)
        losses, *numbers = GradientAccumulator(plan, network, ProcessGroup(device))(
            to_device(device, batch), 0
        )
    assert {part.device for part in (*losses.values(), *numbers)} == {device}
