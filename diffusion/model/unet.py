"""The ADM U-Net (2105.05233): an encoder and a decoder of conditioned blocks with skip connections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.images.image_size import Size
from diffusion.model.blocks import BLOCKS, Attention, Downsample, GroupNorm, Resampling, Upsample, set_norms
from diffusion.model.layers import ConditionedNetwork, ExactConv2d, Stage, timestep_embedding, zero
from diffusion.model.unet_config import UNetSpec


class Encoder(ConditionedNetwork):
    """The half of the U-Net from the image to the middle, with its embedding of time and class."""

    spec: UNetSpec

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec, spec.channels, 4 * spec.channels)
        channels = spec.widths[0]
        patch = spec.patch_size  # the stem sees 3×3 patches
        self.stem = ExactConv2d(spec.input_channels, channels, 3 * patch, stride=patch, padding=patch)
        self.encoder, self.skip_channels = nn.ModuleList(), [channels]  # of each skip, the stem's first
        sizes = spec.level_sizes(spec.size)
        for level, (size, width) in enumerate(zip(sizes, spec.widths, strict=True)):
            for _ in range(spec.num_res_blocks):
                self.encoder.append(self._level_stage(channels, width, size))
                channels = width
                self.skip_channels.append(channels)
            if level + 1 < len(sizes):
                self.encoder.append(self._stage([self._resampler(channels, "down")]))
                self.skip_channels.append(channels)
        self.middle = self._stage(
            [self._block(channels, channels), Attention(spec, channels), self._block(channels, channels)]
        )

    def _level_stage(self, channels: int, out_channels: int, size: Size) -> Stage:
        blocks: list[nn.Module] = [self._block(channels, out_channels)]
        if self.spec.has_attention(size):
            blocks.append(Attention(self.spec, out_channels))
        return self._stage(blocks)

    def _stage(self, blocks: list[nn.Module]) -> Stage:
        return Stage(blocks, self.spec.gradient_checkpointing)

    def _block(self, channels: int, out_channels: int, resampling: Resampling = "none") -> nn.Module:
        return BLOCKS[self.spec.block](self.spec, channels, out_channels, resampling)

    def _resampler(self, channels: int, how: Resampling) -> nn.Module:
        if self.spec.resample == "biggan":
            return self._block(channels, channels, how)
        return Downsample(self.spec, channels) if how == "down" else Upsample(channels)

    def sinusoids(self, t: Tensor) -> Tensor:
        """Return the sinusoids (B, channels) of embedded times (B,)."""
        spec = self.spec
        return timestep_embedding(t * spec.time_scale, spec.channels, spec.frequency_shift)

    def shard_units(self) -> list[nn.Module]:
        """Return the stages, the modules that a sharded training gathers one after another."""
        return [module for module in self.modules() if isinstance(module, Stage)]

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the feature map of the middle for x (B, C, H, W), and the skips, the stem's first."""
        h = self.stem(x)
        skips = [h]
        for stage in self.encoder:
            h = stage(h, embedding)
            skips.append(h)
        return self.middle(h, embedding), skips


class PixelStage(nn.Module):
    """The return from patches to pixels: a sub-pixel convolution (1609.05158), and features of the image.

    SiLU([shuffle(conv(h)), conv(x)]·(1 + scale) + shift), each part with `pixel_channels`. There is no norm,
    so that the image's own mean and contrast stay.
    """

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.patch_size, self.out_channels = spec.patch_size, 2 * spec.pixel_channels
        self.expand = nn.Conv2d(channels, spec.pixel_channels * spec.patch_size**2, 3, padding=1)
        self.image = ExactConv2d(spec.input_channels, spec.pixel_channels, 3, padding=1)
        self.project = nn.Linear(4 * spec.channels, 2 * self.out_channels)

    def forward(self, h: Tensor, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H/p, W/p), the stem's input (B, C_in, H, W) and (B, E) → (B, `out_channels`, H, W)."""
        shuffled = F.pixel_shuffle(self.expand(h), self.patch_size)
        joined = torch.cat([shuffled, self.image(x).to(shuffled.dtype)], dim=1)
        scale, shift = self.project(embedding)[..., None, None].chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, joined, 1 + scale))


class UNet(Encoder):
    """The prediction, then v of a learned variance, of noised images at a time and a class."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec)
        channels, skips = self.skip_channels[-1], list(self.skip_channels)
        self.decoder, sizes = nn.ModuleList(), spec.level_sizes(spec.size)
        for level in reversed(range(len(sizes))):
            width = spec.widths[level]
            for block in range(spec.num_res_blocks + 1):
                stage = self._level_stage(channels + skips.pop(), width, sizes[level])
                if level > 0 and block == spec.num_res_blocks:
                    stage.append(self._resampler(width, "up"))
                self.decoder.append(stage)
                channels = width
        self.norm = GroupNorm(channels)
        if spec.patch_size > 1:
            self.pixels = PixelStage(spec, channels)
            channels = self.pixels.out_channels
        self.head = zero(ExactConv2d(channels, spec.out_channels, 3, padding=1))
        set_norms(self, spec.norm_eps, spec.group_channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        augmentation: Tensor | None = None,
        low_res: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W) in about [−1, 1], conditions as in `join` and `embed` → (B, C or 2C, H, W)."""
        embedding = self.embed(x, t, labels, augmentation, noise_level)
        x = self.join(x, low_res)
        h, skips = self.encode(x, embedding)
        for stage in self.decoder:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        h = F.silu(self.norm(h))
        if self.spec.patch_size > 1:
            h = self.pixels(h, x, embedding)
        return self.head(h)  # type: ignore[no-any-return]
