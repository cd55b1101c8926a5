"""A small CLIP (Radford et al., 2021): a ViT with a convolutional stem and a causal text transformer.

Attribute names are those of OpenAI's implementation; blocks take the batch first.
Letters: B images, C texts, L tokens, N = 1 + 16 image tokens, W width, D joint width.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

LOGIT_SCALE, LOGIT_SCALE_MAX = math.log(1 / 0.07), math.log(100.0)
MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)  # of pixels in [0, 1], each channel


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernel."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":  # its backward is 30 times slower than fp32's there
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, N, W / heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2).to(x.dtype))


class Block(nn.Module):
    """x (B, N, W) -> (B, N, W): attention and MLP, each after its norm, added to x."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """`layers` blocks in a row."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False):
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks: Any = nn.ModuleList(Block(width, heads, causal) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x)
        return x

    def init_weights(self) -> None:
        """CLIP's initialisation: layers that write into the residual are scaled down by the depth."""
        std, depth = self.width**-0.5, (2 * self.layers) ** -0.5
        for block in self.resblocks:
            for linear, scale in ((block.attn.qkv, std), (block.attn.out_proj, std * depth),
                                  (block.mlp[0], std * 2**-0.5), (block.mlp[2], std * depth)):  # fmt: skip
                nn.init.normal_(linear.weight, std=scale)
                nn.init.zeros_(linear.bias)


class VisionTransformer(nn.Module):
    """(B, 3, S, S) -> (B, D). The stem makes one token of 8 x 8 pixels."""

    patch = 8

    def __init__(self, image_size: int, width: int, layers: int, heads: int, dim: int):
        super().__init__()
        self.input_resolution = image_size
        self.conv1 = nn.Conv2d(3, width // 4, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 4, width // 2, 2, stride=2)
        self.conv3 = nn.Conv2d(width // 2, width, 2, stride=2)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.positional_embedding = nn.Parameter(0.02 * torch.randn((image_size // self.patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))  # (B, W, S / 8, S / 8)
        x = x.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)  # (B, N, W)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class TinyCLIP(nn.Module):
    """`encode_image`, `encode_text` and `logit_scale` as in CLIP.

    Texts may be shorter than the context length: the tower is causal, so nothing behind the end is read.
    """

    def __init__(self, vocabulary: int, *, dim: int = 128, image_size: int = 32, width: int = 128, layers: int = 6,
                 heads: int = 4, context_length: int = 77, text_width: int = 128, text_layers: int = 4,
                 text_heads: int = 4):  # fmt: skip
        super().__init__()
        self.visual = VisionTransformer(image_size, width, layers, heads, dim)
        self.transformer = Transformer(text_width, text_layers, text_heads, causal=True)
        self.token_embedding = nn.Embedding(vocabulary, text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(text_width**-0.5 * torch.randn(text_width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for tower in (self.visual.transformer, self.transformer):
            tower.init_weights()

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S), normalised pixels -> (B, D)."""
        return self.visual(images.to(self.dtype))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, L) with the end token (the highest id) in each row -> (C, D)."""
        x = self.token_embedding(tokens).to(self.dtype)
        x = x + self.positional_embedding[: tokens.shape[1]].to(self.dtype)
        x = self.ln_final(self.transformer(x))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)] @ self.text_projection
