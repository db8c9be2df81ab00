"""The options of optimisers. No torch.

A section keeps only values that differ from these defaults, so the module that builds the optimisers imports
them: a changed default changes the digest of the code.
"""

from typing import Annotated

from pydantic import Field

from diffusion.system.section import NotBool, Probability, Section


class AdamOptions(Section):
    """The decay of the first and second moment, `beta1` and `beta2`, and what is added to the divisor."""

    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eps: Annotated[float, Field(gt=0, le=1), NotBool] = 1e-8


class MuonOptions(AdamOptions):
    """The decay of matrices' `momentum`; the other options are those of AdamW for all other parameters."""

    momentum: Probability = 0.95
