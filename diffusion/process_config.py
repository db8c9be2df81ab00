"""The section `process` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffusion.section import Section

Noise = Literal["small", "large", "learned"]
"""Which variance a reverse step has: β̃ or β (DDPM sec. 3.2), or what the network says (iDDPM eq. 15)."""


class ProcessConfig(Section):
    """The process: T timesteps, the schedule of betas, what the network predicts and how it learns.

    `prediction` is ε (DDPM) or the velocity v = √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2022, 2202.00512); a
    sampler sees ε either way. `weighting` min-snr evens out what the timesteps ask of the network (Hang et
    al. 2023, 2303.09556).
    """

    timesteps: Annotated[int, Field(ge=2)] = 1000
    schedule: Literal["linear", "cosine"] = "cosine"
    variance: Noise = "learned"
    loss: Literal["simple", "hybrid", "vlb"] = "hybrid"
    t_sampler: Literal["uniform", "loss-aware"] = "uniform"
    prediction: Literal["eps", "velocity"] = "eps"
    weighting: Literal["none", "min-snr"] = "none"

    @model_validator(mode="after")
    def _loss_fits_variance(self) -> Self:
        if self.variance == "learned" and self.loss == "simple":
            raise ValueError(
                "loss simple never trains a learned variance: use hybrid, or variance small or large"
            )
        if self.variance != "learned" and self.loss != "simple":
            raise ValueError(
                f"loss {self.loss} needs variance learned; with a fixed variance use loss simple"
            )
        if self.t_sampler == "loss-aware" and self.loss == "simple":
            raise ValueError("t_sampler loss-aware is for losses with the bound: use loss vlb or hybrid")
        if self.weighting != "none" and self.loss == "vlb":
            raise ValueError("weighting is for loss simple or hybrid: loss vlb has the bound's own weights")
        return self
