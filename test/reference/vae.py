"""PyTorch twin of models.AutoencoderKL: Stable Diffusion's autoencoder with diffusers' state-dict names, and tiled decoding.

NCHW throughout; attention is written out with the whole matrix of weights.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Resnet(nn.Module):
    def __init__(self, inside, channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inside, eps=1e-6)
        self.conv1 = nn.Conv2d(inside, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if inside != channels:
            self.conv_shortcut = nn.Conv2d(inside, channels, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        skip = self.conv_shortcut(x) if hasattr(self, 'conv_shortcut') else x
        return skip + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, -1)
        return x + self.to_out[0](weights @ v).transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)])
        self.resnets = nn.ModuleList([Resnet(channels, channels, groups) for _ in range(2)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Sampler(nn.Module):
    """A convolution under the name 'conv', behind zeros on the right and below, or behind an upsampling."""

    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2, mode='nearest'))


class Stage(nn.Module):
    def __init__(self, inside, channels, layers, groups, down, last):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels if i else inside, channels, groups) for i in range(layers))
        if not last:
            setattr(self, 'downsamplers' if down else 'upsamplers', nn.ModuleList([Sampler(channels, down)]))

    def forward(self, x):
        for block in self.resnets:
            x = block(x)
        for sampler in getattr(self, 'downsamplers', getattr(self, 'upsamplers', [])):
            x = sampler(x)
        return x


def stages(channels, layers, groups, down):
    last = len(channels) - 1
    return nn.ModuleList(
        Stage(channels[max(i - 1, 0)], width, layers, groups, down, i == last) for i, width in enumerate(channels)
    )


class Half(nn.Module):
    """Encoder or decoder."""

    def __init__(self, inside, outside, channels, layers, groups, down):
        super().__init__()
        self.down = down
        deepest = channels[-1] if down else channels[0]
        self.conv_in = nn.Conv2d(inside, channels[0], 3, padding=1)
        setattr(self, 'down_blocks' if down else 'up_blocks', stages(channels, layers, groups, down))
        self.mid_block = Middle(deepest, groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], outside, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        blocks = self.down_blocks if self.down else self.up_blocks
        for step in [*blocks, self.mid_block] if self.down else [self.mid_block, *blocks]:
            x = step(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self, inChannels, outChannels, latentChannels, blockOutChannels, layersPerBlock, normNumGroups):
        super().__init__()
        latent, up = latentChannels, blockOutChannels[::-1]
        self.encoder = Half(inChannels, 2 * latent, blockOutChannels, layersPerBlock, normNumGroups, True)
        self.decoder = Half(latent, outChannels, up, layersPerBlock + 1, normNumGroups, False)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.factor = 2 ** (len(blockOutChannels) - 1)

    def encode(self, x):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


def kl(mean, logvar):
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3))


def decode_tiled(model, z, size, overlap):
    """Tiles of `size` latents; pixel by pixel loops, so that it shares nothing with the code it checks."""
    step, extent = int(size * (1 - overlap)), int(size * model.factor * overlap)
    side = size * model.factor - extent
    tiles = [
        [model.decode(z[:, :, y : y + size, x : x + size]) for x in range(0, z.shape[3], step)]
        for y in range(0, z.shape[2], step)
    ]
    strips = []
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if i > 0:
                above = tiles[i - 1][j]
                n = min(above.shape[2], tile.shape[2], extent)
                for y in range(n):
                    tile[:, :, y] = above[:, :, above.shape[2] - n + y] * (1 - y / n) + tile[:, :, y] * (y / n)
            if j > 0:
                left = row[j - 1]
                n = min(left.shape[3], tile.shape[3], extent)
                for x in range(n):
                    tile[..., x] = left[..., left.shape[3] - n + x] * (1 - x / n) + tile[..., x] * (x / n)
        strips.append(torch.cat([tile[:, :, :side, :side] for tile in row], 3))
    return torch.cat(strips, 2)
