"""Weights of x̂_0's squared error by α, σ and σ_data, tensors of one shape: entries of LOSS_WEIGHTS.

The process converts them to the error of what the network predicts (`NoiseProcess.loss_weight`).
"""

from typing import Any

from diffusion.process.process_options import MinSNROptions
from diffusion.system.section import Section


def none(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> None:
    """No weight: the error of what the network predicts."""


def min_snr(alpha: Any, sigma: Any, sigma_data: float, options: MinSNROptions) -> Any:
    """min(SNR, γ) with SNR = α²/σ²."""
    return (alpha / sigma).square().clamp(max=options.gamma)


def min_snr_soft(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> Any:
    """α²/(α²σ_data² + σ²): a smooth minimum of SNR and 1/σ_data²."""
    return alpha**2 / (alpha**2 * sigma_data**2 + sigma**2)


def edm(alpha: Any, sigma: Any, sigma_data: float, options: Section) -> Any:
    """1/c_out² = (α²σ_data² + σ²)/(σ·σ_data)²: 1 for prediction edm."""
    return (alpha**2 * sigma_data**2 + sigma**2) / (sigma * sigma_data) ** 2
