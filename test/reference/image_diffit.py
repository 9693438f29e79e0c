"""PyTorch twin of models.ImageDiffiT (the U-shaped DiffiT of the paper's section 3.2), EDM preconditioning and loss.

Plain modules whose state-dict names are the package's. Activations are NCHW; attention and MLP work on [B, H, W, C].
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tmsa import windowed_attention


def group_norm(channels, groups=None):
    return nn.GroupNorm(groups or min(32, channels // 4), channels, eps=1e-5)


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class TimeEmbedding(nn.Module):
    """c_noise [B] -> time token [B, time_dim]."""

    def __init__(self, channels, time_dim, kind):
        super().__init__()
        half = channels // 2
        if kind == 'fourier':
            self.register_buffer('freqs', torch.randn(half) * 16)
        else:
            self.positional = (1 / 10000) ** (torch.arange(half, dtype=torch.float64) / (half - 1))
        self.kind = kind
        self.mlp = nn.Sequential(nn.Linear(channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))

    def forward(self, c_noise, further=0):
        freqs = 2 * math.pi * self.freqs if self.kind == 'fourier' else self.positional.to(c_noise.dtype)
        arg = c_noise[:, None] * freqs
        return self.mlp(torch.cat([arg.cos(), arg.sin()], 1) + further)


class Attention(nn.Module):
    def __init__(self, channels, heads, window, time_dim, conditioning):
        super().__init__()
        self.heads, self.window = heads, window
        rows = (2 * window - 1) ** 2
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        if conditioning == 'tmsa':
            self.qkv_temb = nn.Linear(time_dim, 3 * channels)
        if conditioning == 'bias-only':
            self.bias_temb = nn.Linear(time_dim, rows * heads)

    def forward(self, x, token):
        time = self.qkv_temb(token) if hasattr(self, 'qkv_temb') else None
        table = self.relative_position_bias_table
        if hasattr(self, 'bias_temb'):
            table = table + self.bias_temb(token).view(-1, *table.shape)
        scale = (x.shape[-1] // self.heads) ** -0.5
        y, _ = windowed_attention(self.qkv(x), time, table, self.heads, (self.window, self.window), scale)
        return self.proj(y)


class Mlp(nn.Module):
    def __init__(self, channels, ratio, time_dim, conditioning):
        super().__init__()
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)
        if conditioning == 'mlp-only':
            self.temb = nn.Linear(time_dim, ratio * channels)

    def forward(self, x, token):
        hidden = self.fc1(x)
        if hasattr(self, 'temb'):
            hidden = hidden + self.temb(token)[:, None, None, :]
        return self.fc2(F.gelu(hidden, approximate='tanh'))


class ResBlock(nn.Module):
    def __init__(self, inputs, outputs, heads, window, time_dim, conditioning='tmsa', mlp_ratio=4, groups=None):
        super().__init__()
        self.norm = group_norm(inputs, groups)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.attn = Attention(outputs, heads, window, time_dim, conditioning)
        self.mlp = Mlp(outputs, mlp_ratio, time_dim, conditioning)
        if conditioning == 'adaln':
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 6 * outputs))
        if inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, token):
        h = self.conv(F.silu(self.norm(x))).permute(0, 2, 3, 1)
        if hasattr(self, "adaLN_modulation"):
            chunks = self.adaLN_modulation(token)[:, None, None, :].chunk(6, -1)
            shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = chunks
            h = h + gate_msa * self.attn(layer_norm(h) * (1 + scale_msa) + shift_msa, token)
            h = h + gate_mlp * self.mlp(layer_norm(h) * (1 + scale_mlp) + shift_mlp, token)
        else:
            h = h + self.attn(layer_norm(h), token)
            h = h + self.mlp(layer_norm(h), token)
        return h.permute(0, 3, 1, 2) + (self.skip(x) if hasattr(self, 'skip') else x)


class ImageDiffiT(nn.Module):
    """Takes the package's config keys, so that a fixture's config serves both."""

    def __init__(self, imgResolution, inChannels, baseChannels, channelMult, numBlocks, windowSize, outChannels=None,
                 timeDim=512, numClasses=0, channelsPerHead=64, normGroups=None, mlpRatio=4, timeEmbedding='positional',
                 conditioning='tmsa', augmentDim=0):
        super().__init__()
        stages = len(channelMult)
        widths = [baseChannels * m for m in channelMult]
        counts = numBlocks if isinstance(numBlocks, list) else [numBlocks] * stages
        windows = windowSize if isinstance(windowSize, list) else [windowSize] * stages

        def blocks(i, inputs):
            """The blocks of stage i; the first maps `inputs` channels to the stage's width."""
            width = widths[i]
            heads, window = max(1, width // channelsPerHead), min(windows[i], imgResolution >> i)
            rest = (width, heads, window, timeDim, conditioning, mlpRatio, normGroups)
            return nn.ModuleList(ResBlock(width if j else inputs, *rest) for j in range(counts[i]))

        self.time_embed = TimeEmbedding(baseChannels, timeDim, timeEmbedding)
        self.label_embed = nn.Embedding(numClasses, timeDim) if numClasses else None
        self.augment_embed = nn.Linear(augmentDim, baseChannels, bias=False) if augmentDim else None
        self.tokenizer = nn.Conv2d(inChannels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList()
        for i in range(stages):
            stage = nn.ModuleDict({'blocks': blocks(i, widths[max(i - 1, 0)])})
            if i < stages - 1:
                stage['down'] = nn.Conv2d(widths[i], widths[i], 3, stride=2, padding=1)
            self.encoder.append(stage)
        self.decoder = nn.ModuleList(
            nn.ModuleDict({'up': nn.Conv2d(widths[i + 1], widths[i + 1], 3, padding=1),
                           'blocks': blocks(i, widths[i + 1] + widths[i])}) for i in range(stages - 1))
        self.head = nn.ModuleDict({'norm': group_norm(widths[0], normGroups),
                                   'conv': nn.Conv2d(widths[0], outChannels or inChannels, 3, padding=1)})

    def token(self, c_noise, labels=None, augment=None):
        token = self.time_embed(c_noise, 0 if augment is None else self.augment_embed(augment))
        return token if self.label_embed is None else token + self.label_embed(labels)

    def forward(self, x, c_noise, labels=None, augment=None):
        token = self.token(c_noise, labels, augment)
        h, skips = self.tokenizer(x), []
        for stage in self.encoder:
            for block in stage['blocks']:
                h = block(h, token)
            if 'down' in stage:
                skips.append(h)
                h = stage['down'](h)
        for stage, skip in zip(reversed(self.decoder), reversed(skips)):
            h = torch.cat([stage['up'](F.interpolate(h, scale_factor=2, mode='nearest')), skip], 1)
            for block in stage['blocks']:
                h = block(h, token)
        return self.head['conv'](F.silu(self.head['norm'](h)))


def edm_denoise(model, x, sigma, labels=None, sigma_data=0.5):
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4), sigma [B]."""
    s = sigma.view(-1, 1, 1, 1)
    total = s**2 + sigma_data**2
    return sigma_data**2 / total * x + s * sigma_data / total.sqrt() * model(x / total.sqrt(), sigma.log() / 4, labels)


def edm_loss(model, images, rnd_normal, noise, labels=None, sigma_data=0.5):
    """Mean over all elements of (s^2 + sd^2) / (s sd)^2 (D(y + s n; s) - y)^2 with ln s = 1.2 rnd_normal - 1.2."""
    sigma = (1.2 * rnd_normal - 1.2).exp()
    s = sigma.view(-1, 1, 1, 1)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return (weight * (edm_denoise(model, images + s * noise, sigma, labels, sigma_data) - images) ** 2).mean()
