"""DDIM's encoding of images as noise, and interpolation between codes (2010.02502, sec. 4.3, app. D.5)."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.images.pixels import to_model, to_nchw, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel, ModelDescription
from diffusion.process.denoiser import Condition
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import OnStep, check_settings, denoiser_builder, model_denoiser
from diffusion.sample.sampler import DenoiserCall, NaNGuard, Step, Trajectory, build_sampler, run_sampler
from diffusion.system.errors import UsageError

FRAMES_PER_BATCH = 64


def encoding(grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
    """Yield the trajectory from images x_0 to their codes x_T (B, C, H, W); it draws no noise.

    The deterministic step is reversed (DDIM eq. 14), so that sampling with η = 0 and no clipping returns to
    x_0. ε is predicted at the start of a step, so the result is exact only as S grows. The first step starts
    at the image itself, with the prediction for the first timestep.
    """
    steps = grid.reverse_steps()[::-1]
    for done, step in enumerate(steps, start=1):
        prediction = yield DenoiserCall(x, steps[max(done - 2, 0)].t)
        x0_hat = (x - step.sigma_prev * prediction.eps) / step.alpha_prev
        x = step.alpha * x0_hat + step.sigma * prediction.eps
        yield Step(done, len(steps), x, x0_hat)


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Interpolate codes on a sphere, image by image: `first` at 0, `second` at 1 (DDIM app. D.5).

    Codes are nearly orthogonal Gaussians; between them this keeps the length that the network expects.
    Parallel codes are interpolated linearly.
    """
    a, b = first.flatten(1), second.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    parallel = sine < 1e-6
    of_a = torch.where(parallel, 1 - fraction, ((1 - fraction) * angle).sin() / sine)
    of_b = torch.where(parallel, fraction, (fraction * angle).sin() / sine)
    return (of_a * a + of_b * b).reshape(first.shape)


def encode_images(
    loaded: LoadedModel,
    settings: SampleSettings,
    images: Images,
    condition: Condition,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return codes (B, C, H, W) float32 on the CPU of uint8 images (B, H, W, C), by the settings' timesteps.

    NonFiniteError if a prediction or a step is NaN or infinite.
    """
    check_trajectories(loaded.artefact, "a code")
    device = next(loaded.network.parameters()).device
    x_0 = to_model(to_nchw(images).to(device))
    guard = NaNGuard("the code of image {} of these".format, {"model": loaded.network})
    trajectory = encoding(check_settings(loaded.artefact, settings), x_0, lambda: x_0)
    return run_sampler(trajectory, model_denoiser(loaded), condition.to(device), on_step, guard).x.cpu()


def check_trajectories(artefact: ModelDescription, what: str) -> None:
    """Raise UsageError for a model tuned for consistency: its x̂_0 is no mean, so it has no ODE."""
    if OBJECTIVES[artefact.process.loss].is_consistency:
        problem = f"the model was tuned for consistency, and {what} needs trajectories of an ordinary model"
        raise UsageError(f"{problem}: use the one that it was tuned from")


def decode_images(
    loaded: LoadedModel,
    settings: SampleSettings,
    codes: Tensor,
    condition: Condition,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the images that deterministic sampling makes of codes, uint8 (B, C, H, W) on the CPU.

    It clips no x̂_0, whatever the settings, since `encoding` reverses the step that does not: with S = T
    digits came back 0.01 of 255 off on average, and 1.0 with clipping.
    """
    plain = settings.model_copy(update={"eta": 0.0, "clip": False})
    device = next(loaded.network.parameters()).device
    x_t = codes.to(device)
    guard = NaNGuard("image {} of these".format, {"model": loaded.network}, bool(plain.guidance))
    trajectory = build_sampler(plain)(check_settings(loaded.artefact, plain), x_t, lambda: x_t)
    denoiser = denoiser_builder(loaded, plain)()
    return to_uint8(run_sampler(trajectory, denoiser, condition.to(device), on_step, guard).x).cpu()


def interpolate(
    loaded: LoadedModel,
    settings: SampleSettings,
    ends: Images,
    condition: Condition,
    frames: int,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return `frames` images from the first to the second of two images (2, H, W, C): uint8 (F, C, H, W).

    Each end is encoded with its own row of the condition; a point between has that of the nearer end.
    """
    codes, rows = interpolate_codes(
        encode_images(loaded, settings, ends, condition, on_step), condition, frames
    )
    parts = [slice(start, start + FRAMES_PER_BATCH) for start in range(0, frames, FRAMES_PER_BATCH)]
    return torch.cat(
        [decode_images(loaded, settings, codes[part], rows.rows(part), on_step) for part in parts]
    )


def interpolate_codes(ends: Tensor, condition: Condition, frames: int) -> tuple[Tensor, Condition]:
    """Return `frames` codes from the first to the second of two, (2, C, H, W), and the condition of each."""
    fractions = torch.linspace(0, 1, frames)
    codes = torch.cat([slerp(ends[:1], ends[1:], float(fraction)) for fraction in fractions])
    return codes, condition.rows((fractions > 0.5).long())
