"""The options of entries of OBJECTIVES, TIME_DISTRIBUTIONS and LOSS_WEIGHTS. No torch.

A section keeps only values that differ from these defaults, so the modules that compute the entries import
them: a changed default changes the digest of the code.
"""

from typing import Annotated

from pydantic import Field

from diffusion.system.section import NotBool, PositiveInt, Section


class NormalOptions(Section):
    """The `mean` and the `std` of a normal distribution, before its map to times."""

    mean: Annotated[float, Field(ge=-10, le=10), NotBool] = 0.0
    std: Annotated[float, Field(gt=0, le=10), NotBool] = 1.0


class LogNormalOptions(NormalOptions):
    """EDM's P_mean and P_std, of ln σ (2206.00364, table 1)."""

    mean: Annotated[float, Field(ge=-10, le=10), NotBool] = -1.2
    std: Annotated[float, Field(gt=0, le=10), NotBool] = 1.2


class MinSNROptions(Section):
    """`gamma` is the signal-to-noise ratio above which the weight of x̂_0's error stays constant."""

    gamma: Annotated[float, Field(gt=0, le=1e6), NotBool] = 5.0


class VelocityOptions(Section):
    """`min_sigma` is the σ below which the weight of x̂_0's error stays constant."""

    min_sigma: Annotated[float, Field(gt=0, le=1), NotBool] = 0.05


class ConsistencyOptions(Section):
    """The stages of consistency tuning: stage a has a part of q^−(a+1) between two noise levels.

    A stage has `stage_steps` steps; None makes all one stage. The last one with q^−(a+1) ≥ 10⁻⁴ never ends.
    `huber` is c of the pseudo-Huber distance √(‖·‖² + c²) − c. The authors' code has q = 2 in eight stages,
    or one stage of q = 256 for short tunings.
    """

    q: Annotated[float, Field(gt=1, le=1e6), NotBool] = 2.0
    stage_steps: PositiveInt | None = None
    huber: Annotated[float, Field(ge=0, le=1e6), NotBool] = 0.0


class ContrastiveOptions(Section):
    """`weight` is λ, the share of the error for another image's target."""

    weight: Annotated[float, Field(ge=0, lt=1), NotBool] = 0.05


class DispersiveOptions(Section):
    """The features are the outputs of `module`; the paper takes a block at a quarter of the depth.

    `weight` is λ, `temperature` τ.
    """

    module: Annotated[str, Field(min_length=1, max_length=100)] = "encoder.1"
    weight: Annotated[float, Field(ge=0, le=1e6), NotBool] = 0.5
    temperature: Annotated[float, Field(gt=0, le=1e6), NotBool] = 0.5
