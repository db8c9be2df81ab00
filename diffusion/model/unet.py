"""The ADM U-Net (2105.05233): an encoder and a decoder of conditioned blocks with skip connections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.model.blocks import (
    BLOCKS,
    Attention,
    Downsample,
    ExactConv2d,
    GroupNorm,
    Resampling,
    Stage,
    Upsample,
    set_norm_eps,
    timestep_embedding,
    zero,
)
from diffusion.model.network_registry import AUGMENTATION_NUMBERS
from diffusion.model.unet_config import UNetSpec, level_sizes


class AugmentationEmbedding(nn.Module):
    """What an embedding gains by how an image was transformed: linear and without a bias, at first zero.

    So an image that was not transformed adds nothing, and the layer can be left out of a network that samples
    (Karras et al. 2022, 2206.00364, app. F.2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, AUGMENTATION_NUMBERS))

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, 9) → (B, width)."""
        return F.linear(numbers, self.weight)


class Encoder(nn.Module):
    """The half of the U-Net from the image to the middle, with its embedding of time and class."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        width = 4 * spec.channels
        self.time = nn.Sequential(nn.Linear(spec.channels, width), nn.SiLU(), nn.Linear(width, width))
        if spec.num_classes:
            self.classes = nn.Embedding(spec.num_classes + spec.null_class, width)
        if spec.augmented:
            self.augmentation = AugmentationEmbedding(width)
        channels = spec.channel_mult[0] * spec.channels
        self.stem = ExactConv2d(spec.in_channels, channels, 3, padding=1)
        self.encoder, self.skip_channels = self._encoder(channels)
        channels = self.skip_channels[-1]
        self.middle = self._stage(
            [self._block(channels, channels), self._attention(channels), self._block(channels, channels)]
        )

    def _encoder(self, channels: int) -> tuple[nn.ModuleList, list[int]]:
        """Return the stages from the image down, and the channels of each skip, the stem's first."""
        spec, stages, skips = self.spec, [], [channels]
        sizes = level_sizes(spec.image_size, len(spec.channel_mult))
        for level, (size, mult) in enumerate(zip(sizes, spec.channel_mult, strict=True)):
            for _ in range(spec.num_res_blocks):
                stages.append(self._level_stage(channels, mult * spec.channels, size))
                channels = mult * spec.channels
                skips.append(channels)
            if level + 1 < len(sizes):
                stages.append(self._stage([self._resampler(channels, "down")]))
                skips.append(channels)
        return nn.ModuleList(stages), skips

    def _level_stage(self, channels: int, out_channels: int, size: int) -> Stage:
        blocks: list[nn.Module] = [self._block(channels, out_channels)]
        if size in self.spec.attention_resolutions:
            blocks.append(self._attention(out_channels))
        return self._stage(blocks)

    def _stage(self, blocks: list[nn.Module]) -> Stage:
        return Stage(blocks, self.spec.gradient_checkpointing)

    def _block(self, channels: int, out_channels: int, resampling: Resampling = "none") -> nn.Module:
        spec = self.spec
        return BLOCKS[spec.block](
            channels,
            out_channels,
            4 * spec.channels,
            embedding=spec.embedding,
            dropout=spec.dropout,
            resampling=resampling,
        )

    def _resampler(self, channels: int, how: Resampling) -> nn.Module:
        if self.spec.resample == "biggan":
            return self._block(channels, channels, how)
        return Downsample(channels, self.spec.downsample_padding) if how == "down" else Upsample(channels)

    def _attention(self, channels: int) -> nn.Module:
        spec = self.spec
        return Attention(channels, channels // spec.head_channels if spec.head_channels else spec.heads or 1)

    def embed(
        self, x: Tensor, t: Tensor, labels: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        """(B, E) activated embedding of (B,) original timesteps and labels, in `x`'s dtype.

        `augmentation` (B, 9) describes how images were transformed; None if they were not. ValueError unless
        there are labels exactly when the network is conditional.
        """
        if (labels is None) != (self.spec.num_classes == 0):
            raise ValueError("a conditional network needs labels, an unconditional one takes none")
        sinusoids = timestep_embedding(
            t * self.spec.time_scale, self.spec.channels, self.spec.frequency_shift
        )
        embedding = self.time(sinusoids.to(x.dtype))
        if labels is not None:
            embedding = embedding + self.classes(labels)
        if augmentation is not None:
            embedding = embedding + self.augmentation(augmentation.to(x.dtype))
        return F.silu(embedding)

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) → the middle's feature map, and the skips from the image down."""
        h = self.stem(x)
        skips = [h]
        for stage in self.encoder:
            h = stage(h, embedding)
            skips.append(h)
        return self.middle(h, embedding), skips


class UNet(Encoder):
    """ε, then v when the variance is learned, of noised images at a timestep and a class.

    Built wholly from a UNetSpec, which is also what a model file stores.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec)
        self.decoder = self._decoder(self.skip_channels[-1], self.skip_channels)
        channels = spec.channel_mult[0] * spec.channels
        self.norm = GroupNorm(channels)
        self.head = zero(ExactConv2d(channels, spec.out_channels, 3, padding=1))
        set_norm_eps(self, spec.norm_eps)

    def _decoder(self, channels: int, skips: list[int]) -> nn.ModuleList:
        """Return the stages back up to the image; each takes one skip, the last encoder stage's first."""
        spec, stages, remaining = self.spec, [], list(skips)
        sizes = level_sizes(spec.image_size, len(spec.channel_mult))
        for level in reversed(range(len(sizes))):
            for block in range(spec.num_res_blocks + 1):
                out = spec.channel_mult[level] * spec.channels
                stage = self._level_stage(channels + remaining.pop(), out, sizes[level])
                if level > 0 and block == spec.num_res_blocks:
                    stage.append(self._resampler(out, "up"))
                stages.append(stage)
                channels = out
        return nn.ModuleList(stages)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """x (B, C, H, W) in about [−1, 1], t (B,) original timesteps, labels (B,) → (B, C or 2C, H, W).

        Labels are needed exactly when the network is conditional; ValueError otherwise. `augmentation` (B, 9)
        describes to an augmented network how images were transformed; without it they were not.
        """
        embedding = self.embed(x, t, labels, augmentation)
        h, skips = self.encode(x, embedding)
        for stage in self.decoder:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.head(F.silu(self.norm(h)))  # type: ignore[no-any-return]
