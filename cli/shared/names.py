"""Options whose values are the names that a registry has: others are refused, and help lists them."""

from enum import StrEnum
from typing import get_args

from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.samplers import Noise as NoiseName
from diffusion.protocol.spacing import SPACINGS

Noise = StrEnum("Noise", {name: name for name in get_args(NoiseName)})  # type: ignore[misc]
Spacing = StrEnum("Spacing", {name: name for name in SPACINGS})  # type: ignore[misc]
Sampler = StrEnum("Sampler", {name: name for name in SAMPLERS})  # type: ignore[misc]
Extractor = StrEnum("Extractor", {name: name for name in EXTRACTORS})  # type: ignore[misc]
Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]
