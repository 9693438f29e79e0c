"""PyTorch twin of models.LatentDiffiT and models.DiT, with MDT's masked pass. State-dict names are the package's."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tmsa import position_index


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Named(nn.Module):
    """A module whose children are given by keyword."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Attention(nn.Module):
    def __init__(self, dim, heads, side, tmsa):
        super().__init__()
        self.heads = heads
        if tmsa:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
            self.qkv_temb = nn.Linear(dim, 3 * dim)
        self.index = position_index(side, side)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, token, kept=None):
        b, n, c = x.shape
        qkv = self.qkv(x)
        bias = 0
        if hasattr(self, 'qkv_temb'):
            qkv = qkv + self.qkv_temb(token)[:, None]
            index = self.index if kept is None else self.index[kept[:, :, None], kept[:, None, :]]
            bias = self.relative_position_bias_table[index].movedim(-1, -3)
        q, k, v = qkv.reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5 + bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim, heads, side, ratio, tmsa):
        super().__init__()
        self.attn = Attention(dim, heads, side, tmsa)
        self.mlp = Named(fc1=nn.Linear(dim, dim * ratio), fc2=nn.Linear(dim * ratio, dim))
        if not tmsa:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, token, kept=None):
        mlp = lambda h: self.mlp.fc2(F.gelu(self.mlp.fc1(h), approximate='tanh'))
        if not hasattr(self, 'adaLN_modulation'):
            x = x + self.attn(layer_norm(x), token, kept)
            return x + mlp(layer_norm(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(token)[:, None].chunk(6, -1)
        x = x + gate1 * self.attn(layer_norm(x) * (1 + scale1) + shift1, token, kept)
        return x + gate2 * mlp(layer_norm(x) * (1 + scale2) + shift2)


class LatentTransformer(nn.Module):
    def __init__(self, tmsa, inputSize, patchSize, inChannels, hiddenSize, depth, numHeads, mlpRatio, numClasses,
                 classDropoutProb=0.1, learnSigma=True, maskRatio=0, decodeLayers=4):
        super().__init__()
        dim, self.side, self.patch = hiddenSize, inputSize // patchSize, patchSize
        self.channels = inChannels * (2 if learnSigma else 1)
        block = lambda: Block(dim, numHeads, self.side, mlpRatio, tmsa)
        self.register_buffer('pos_embed', torch.zeros(1, self.side**2, dim))
        self.encoders = depth
        if maskRatio:
            self.encoders = depth - decodeLayers
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.side**2, dim))
            self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.sideblocks = nn.ModuleList([block()])
        self.x_embedder = Named(proj=nn.Conv2d(inChannels, dim, patchSize, patchSize))
        self.t_embedder = Named(mlp=nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim)))
        self.y_embedder = Named(embedding_table=nn.Embedding(numClasses + (classDropoutProb > 0), dim))
        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.final_layer = Named(linear=nn.Linear(dim, patchSize**2 * self.channels))
        if not tmsa:
            self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def token(self, t, y):
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        args = t.float()[:, None] * freqs
        features = torch.cat([args.cos(), args.sin()], 1).to(self.pos_embed.dtype)
        return self.t_embedder.mlp(features) + self.y_embedder.embedding_table(y)

    def head(self, x, token):
        if hasattr(self.final_layer, 'adaLN_modulation'):
            shift, scale = self.final_layer.adaLN_modulation(token)[:, None].chunk(2, -1)
            x = layer_norm(x) * (1 + scale) + shift
        else:
            x = F.silu(layer_norm(x))
        x = self.final_layer.linear(x).reshape(-1, self.side, self.side, self.patch, self.patch, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, *[self.side * self.patch] * 2)

    def forward(self, x, t, y, kept=None):
        """kept [B, K]: the positions that the encoder sees (MDT's masked pass); None: all."""
        token = self.token(t, y)
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        n = x.shape[1]
        if kept is not None:
            x = x[torch.arange(len(kept))[:, None], kept]
        for block in self.blocks[: self.encoders]:
            x = block(x, token, kept)
        if kept is not None:
            seen = torch.zeros(len(kept), n, 1, dtype=torch.bool).scatter(1, kept[:, :, None], True)
            grid = self.mask_token.repeat(len(kept), n, 1)
            x = grid.scatter(1, kept[:, :, None].expand(x.shape), x) + self.decoder_pos_embed
            x = torch.where(seen, x, self.sideblocks[0](x, token))
        elif hasattr(self, 'decoder_pos_embed'):
            x = x + self.decoder_pos_embed
        for block in self.blocks[self.encoders :]:
            x = block(x, token)
        return self.head(x, token)
