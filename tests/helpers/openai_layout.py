"""The U-Net of guided-diffusion and improved-diffusion as plain functions of a state dict in their layout.

Written from the papers' description and the names in the published files, as an oracle for the import.
Weights are requested by name and shape: the first pass creates a random state dict, and a later one reads it.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Layout:
    """The options as the original flags name them."""

    image_size: int
    in_channels: int
    out_channels: int
    num_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...] = ()
    num_heads: int = 1
    num_head_channels: int = -1
    num_classes: int = 0
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    new_attention_order: bool = False
    rescale_timesteps: float = 1.0
    state: dict[str, Tensor] = field(default_factory=dict)
    source: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def weight(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            fan_in = math.prod(shape[1:]) or 1
            self.state[name] = torch.randn(*shape, generator=self.source) * (0.5 / fan_in**0.5)
        tensor = self.state[name]
        assert tuple(tensor.shape) == shape, name
        return tensor

    def affine(self, name: str, width: int, *rest: int) -> tuple[Tensor, Tensor]:
        return self.weight(f"{name}.weight", width, *rest), self.weight(f"{name}.bias", width)

    def linear(self, x: Tensor, name: str, width: int) -> Tensor:
        return F.linear(x, *self.affine(name, width, x.shape[1]))

    def conv(self, x: Tensor, name: str, width: int, size: int = 3, stride: int = 1) -> Tensor:
        return F.conv2d(x, *self.affine(name, width, x.shape[1], size, size), stride, size // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, *self.affine(name, x.shape[1]))

    def res_block(self, x: Tensor, emb: Tensor, name: str, width: int, resample=lambda x: x) -> Tensor:
        h = resample(F.silu(self.norm(x, f"{name}.in_layers.0")))
        x = resample(x)
        h = self.conv(h, f"{name}.in_layers.2", width)
        shift = self.linear(F.silu(emb), f"{name}.emb_layers.1", width * (2 if self.scale_shift_norm else 1))
        shift = shift[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = shift[:, :width], shift[:, width:]
            h = self.norm(h, f"{name}.out_layers.0") * (1 + scale) + shift
        else:
            h = self.norm(h + shift, f"{name}.out_layers.0")
        h = self.conv(F.silu(h), f"{name}.out_layers.3", width)
        return h + (x if x.shape[1] == width else self.conv(x, f"{name}.skip_connection", width, 1))

    def attention(self, x: Tensor, name: str) -> Tensor:
        batch, width, height, _ = x.shape
        heads = self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels
        h = self.norm(x, f"{name}.norm").flatten(2)
        qkv = F.conv1d(h, *self.affine(f"{name}.qkv", 3 * width, width, 1))
        if self.new_attention_order:
            parts = [part.reshape(batch, heads, -1, height**2) for part in qkv.chunk(3, 1)]
        else:
            parts = list(qkv.reshape(batch, heads, -1, height**2).chunk(3, 2))
        q, k, v = parts
        scores = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])
        h = torch.einsum("bhts,bhcs->bhct", scores.softmax(-1), v).reshape(batch, width, -1)
        return x + F.conv1d(h, *self.affine(f"{name}.proj_out", width, width, 1)).reshape(x.shape)

    def down(self, x: Tensor, emb: Tensor, name: str) -> Tensor:
        if self.resblock_updown:
            return self.res_block(x, emb, f"{name}.0", x.shape[1], lambda x: F.avg_pool2d(x, 2))
        return self.conv(x, f"{name}.0.op", x.shape[1], stride=2)

    def up(self, x: Tensor, emb: Tensor, name: str) -> Tensor:
        def twice(x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

        if self.resblock_updown:
            return self.res_block(x, emb, name, x.shape[1], twice)
        return self.conv(twice(x), f"{name}.conv", x.shape[1])

    def embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        half = self.num_channels // 2
        angles = t[:, None] * self.rescale_timesteps * 10_000 ** (-torch.arange(half) / half)
        h = self.linear(torch.cat([angles.cos(), angles.sin()], 1), "time_embed.0", 4 * self.num_channels)
        emb = self.linear(F.silu(h), "time_embed.2", 4 * self.num_channels)
        if y is not None:
            emb = emb + self.weight("label_emb.weight", self.num_classes, 4 * self.num_channels)[y]
        return emb

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embed(t, y)
        base, size, index = self.num_channels, self.image_size, 1
        h = self.conv(x, "input_blocks.0.0", self.channel_mult[0] * base)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                h = self.res_block(h, emb, f"input_blocks.{index}.0", mult * base)
                if size in self.attention_resolutions:
                    h = self.attention(h, f"input_blocks.{index}.1")
                skips.append(h)
                index += 1
            if level < len(self.channel_mult) - 1:
                h = self.down(h, emb, f"input_blocks.{index}")
                skips.append(h)
                size //= 2
                index += 1
        h = self.res_block(h, emb, "middle_block.0", h.shape[1])
        h = self.attention(h, "middle_block.1")
        h = self.res_block(h, emb, "middle_block.2", h.shape[1])
        index = 0
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = torch.cat([h, skips.pop()], 1)
                h = self.res_block(h, emb, f"output_blocks.{index}.0", mult * base)
                part = 1
                if size in self.attention_resolutions:
                    h = self.attention(h, f"output_blocks.{index}.1")
                    part = 2
                if level and i == self.num_res_blocks:
                    h = self.up(h, emb, f"output_blocks.{index}.{part}")
                    size *= 2
                index += 1
        return self.conv(F.silu(self.norm(h, "out.0")), "out.2", self.out_channels)
