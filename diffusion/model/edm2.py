"""EDM2's U-Net (Karras et al. 2023, 2312.02696, config G): all layers preserve magnitudes.

With `prediction: edm` the network receives x of variance 1, and predicts F of variance 1.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.model import kernels
from diffusion.model.edm2_config import EDM2Spec
from diffusion.model.layers import Dropout, Stage
from diffusion.model.magnitude import ExactMPLayer, Fourier, MPLayer, mp_cat, mp_silu, mp_sum, pixel_norm

RESIDUAL = 0.3  # the share of a residual branch (table 6)
CLASS = 0.5  # the share of the class in the embedding
MAX_ACTIVATION = 256.0  # of a block (app. B.6)
TIMES = 1000.0  # embedded times are on this scale; the paper's c_noise is without it

Resampling = Literal["none", "up", "down"]


class Block(nn.Module):
    """A residual block, of the encoder or the decoder, with attention after it if `attends` (fig. 20).

    The encoder's normalises each pixel. The embedding scales a channel by 1 + its projection, which starts as
    0.
    """

    def __init__(
        self,
        spec: EDM2Spec,
        channels: int,
        out_channels: int,
        part: Literal["encoder", "decoder"],
        resampling: Resampling = "none",
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.in_encoder, self.resampling = part == "encoder", resampling
        inner = out_channels if self.in_encoder else channels
        self.skip = MPLayer(channels, out_channels, 1) if channels != out_channels else None
        self.conv_in = MPLayer(inner, out_channels, 3)
        self.project = MPLayer(max(spec.widths), out_channels)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = Dropout(spec.dropout)
        self.conv_out = MPLayer(out_channels, out_channels, 3)
        self.heads = out_channels // spec.head_channels if attends else 0
        if attends:
            self.qkv = MPLayer(out_channels, 3 * out_channels, 1)
            self.attention_out = MPLayer(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) and the activated (B, E) embedding → (B, C_out, H', W')."""
        if self.resampling != "none":
            x = kernels.downsample(x) if self.resampling == "down" else kernels.upsample(x)
        if self.in_encoder:
            x = pixel_norm(x if self.skip is None else self.skip(x))
        h = self.conv_in(mp_silu(x))
        h = mp_silu(h * (self.project(embedding, self.gain) + 1)[..., None, None].to(h.dtype))
        h = self.conv_out(self.dropout(h))
        if not self.in_encoder and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, h, RESIDUAL)
        if self.heads:
            x = mp_sum(x, self._attention(x), RESIDUAL)
        return x.clamp(-MAX_ACTIVATION, MAX_ACTIVATION)

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: each pixel's query, key and value of each head are normalised."""
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        mixed = kernels.attention(pixel_norm(qkv, dim=3).transpose(3, 4))
        out: Tensor = self.attention_out(mixed.transpose(2, 3).reshape(x.shape))
        return out


class EDM2(nn.Module):
    """The prediction, then v of a learned variance, of noised images at a time and a class."""

    def __init__(self, spec: EDM2Spec) -> None:
        super().__init__()
        self.spec = spec
        widths = spec.widths
        self.fourier = Fourier(spec.channels)
        self.time = MPLayer(spec.channels, max(widths))
        if spec.num_classes:
            self.classes = MPLayer(spec.num_classes + spec.null_class, max(widths))
        self.stem = ExactMPLayer(spec.in_channels + 1, widths[0], 3)  # a constant channel replaces biases
        self.encoder, skips = self._build_encoder(widths)
        self.decoder = self._build_decoder(widths, skips)
        self.head = ExactMPLayer(widths[0], spec.out_channels, 3)
        self.gain = nn.Parameter(torch.zeros(1))

    def _stage(self, *blocks: Block) -> Stage:
        return Stage(list(blocks), self.spec.gradient_checkpointing)

    def _build_encoder(self, widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
        """Return the stages on the way down, and the channels of all skips, the stem's first."""
        stages, channels, skips = nn.ModuleList(), widths[0], [widths[0]]
        sizes = self.spec.level_sizes(self.spec.size)
        for level, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            if level > 0:
                stages.append(self._stage(Block(self.spec, channels, channels, "encoder", "down")))
                skips.append(channels)
            for _ in range(self.spec.num_res_blocks):
                attends = self.spec.has_attention(size)
                stages.append(self._stage(Block(self.spec, channels, width, "encoder", attends=attends)))
                channels = width
                skips.append(channels)
        return stages, skips

    def _build_decoder(self, widths: list[int], skips: list[int]) -> nn.ModuleList:
        """Return the stages on the way up; the first of each level takes no skip."""
        stages, channels, skips = nn.ModuleList(), widths[-1], list(skips)
        sizes = self.spec.level_sizes(self.spec.size)
        for level, (size, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            first = (
                [Block(self.spec, channels, channels, "decoder", "up")]
                if level + 1 < len(widths)
                else [
                    Block(self.spec, channels, channels, "decoder", attends=True),
                    Block(self.spec, channels, channels, "decoder"),
                ]
            )
            stages.append(self._stage(*first))
            for _ in range(self.spec.num_res_blocks + 1):
                attends = self.spec.has_attention(size)
                inputs = channels + skips.pop()
                stages.append(self._stage(Block(self.spec, inputs, width, "decoder", attends=attends)))
                channels = width
        return stages

    def shard_units(self) -> list[nn.Module]:
        """Return the stages, the modules that a sharded training gathers one after another."""
        return [*self.encoder, *self.decoder]

    def project_weights(self, finite: Tensor) -> None:
        """Set all weights to magnitude 1, if `finite`: a training calls it after each step."""
        for module in self.modules():
            if isinstance(module, MPLayer):
                module.project(finite)

    def embed(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the activated embedding (B, E) of embedded times (B,) and labels, in `x`'s dtype.

        ValueError unless there are labels exactly when the network is conditional.
        """
        if (labels is None) != (self.spec.num_classes == 0):
            raise ValueError("a conditional network needs labels, an unconditional one takes none")
        embedding: Tensor = self.time(self.fourier(t / TIMES).to(x.dtype))
        if labels is not None:
            count = self.spec.num_classes + self.spec.null_class
            one_hot = nn.functional.one_hot(labels, count).to(x.dtype) * count**0.5
            embedding = mp_sum(embedding, self.classes(one_hot), CLASS)
        return mp_silu(embedding)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), times (B,) and labels (B,) → (B, C or 2C, H, W)."""
        embedding = self.embed(x, t, labels)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for stage in self.encoder:
            h = stage(h, embedding)
            skips.append(h)
        for index, stage in enumerate(self.decoder):
            takes_skip = index % (self.spec.num_res_blocks + 2) > 0
            h = stage(mp_cat(h, skips.pop()) if takes_skip else h, embedding)
        return self.head(h, self.gain)  # type: ignore[no-any-return]
