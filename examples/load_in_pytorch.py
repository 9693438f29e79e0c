"""Loads a model exported by export-to-pytorch.ts into a torch.nn.Module and compares its outputs with diffit's.

    python3 load_in_pytorch.py FOLDER

Needs torch and nothing else. ImageDiffiT below is the whole network (DiffiT, arXiv 2312.02139, section 3.2) for inference, with time-dependent
attention (Eq. 3-6) and positional time embedding, the package's defaults; copy it to go on in PyTorch.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = {'F32': torch.float32, 'BF16': torch.bfloat16, 'F16': torch.float16, 'I64': torch.int64}


def read_safetensors(path):
    """Tensors by name, and the metadata. The format: length of the header, header (JSON), bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:start])
    metadata = header.pop('__metadata__', {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry['data_offsets']
        values = torch.frombuffer(bytearray(data[start + begin : start + end]), dtype=DTYPES[entry['dtype']])
        tensors[name] = values.reshape(entry['shape'])
    return tensors, metadata


class TimeEmbedding(nn.Module):
    """ln(sigma) / 4, [B] -> time token [B, dim]."""

    def __init__(self, channels, dim):
        super().__init__()
        half = channels // 2
        self.frequencies = 10000.0 ** (-torch.arange(half) / max(half - 1, 1))
        self.mlp = nn.Sequential(nn.Linear(channels, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, c_noise):
        angles = c_noise[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class Attention(nn.Module):
    """Time-dependent attention in windows of `side` x `side` tokens: q, k and v are sums of the token's part and the time token's."""

    def __init__(self, channels, heads, side, time_dim):
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(channels, 3 * channels)
        self.qkv_temb = nn.Linear(time_dim, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        place = torch.arange(side * side)
        row, column = place // side, place % side
        down = row[:, None] - row[None, :] + side - 1
        right = column[:, None] - column[None, :] + side - 1
        self.pairs = down * (2 * side - 1) + right  # row of the table for query i and key j

    def forward(self, x, time):
        batch, height, width, channels = x.shape
        side, down, right = self.side, height // self.side, width // self.side
        qkv = self.qkv(x) + self.qkv_temb(time)[:, None, None, :]
        # windows become samples: [B * windows, tokens, 3, heads, d] -> 3 of [B * windows, heads, tokens, d]
        windows = qkv.view(batch, down, side, right, side, 3 * channels).transpose(2, 3)
        q, k, v = windows.reshape(batch * down * right, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.pairs].permute(2, 0, 1)  # [heads, tokens, tokens]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        y = y.reshape(batch, down, right, side, side, channels).transpose(2, 3)
        return self.proj(y.reshape(batch, height, width, channels))


class Mlp(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate='tanh'))


class ResBlock(nn.Module):
    """Eq. 9-10: convolution, then the transformer block of Eq. 7-8, then the skip."""

    def __init__(self, inputs, outputs, side, config):
        super().__init__()
        self.norm = group_norm(inputs, config)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        heads = max(1, outputs // config['channelsPerHead'])
        self.attn = Attention(outputs, heads, side, config['timeDim'])
        self.mlp = Mlp(outputs, int(config['mlpRatio'] * outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, time):
        h = self.conv(F.silu(self.norm(x))).permute(0, 2, 3, 1)
        h = h + self.attn(layer_norm(h), time)
        h = h + self.mlp(layer_norm(h))
        return h.permute(0, 3, 1, 2) + (x if self.skip is None else self.skip(x))


class ImageDiffiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config['conditioning'] != 'tmsa' or config['timeEmbedding'] != 'positional':
            raise SystemExit('This script has time-dependent attention and the positional time embedding only.')
        stages = len(config['channelMult'])
        widths = [config['baseChannels'] * factor for factor in config['channelMult']]
        depths, windows = (per_stage(config[key], stages) for key in ('numBlocks', 'windowSize'))

        def blocks(stage, inputs):
            side = min(windows[stage], config['imgResolution'] >> stage)
            widths_in = [inputs] + [widths[stage]] * (depths[stage] - 1)
            return nn.ModuleList(ResBlock(width, widths[stage], side, config) for width in widths_in)

        self.time_embed = TimeEmbedding(widths[0] // config['channelMult'][0], config['timeDim'])
        if config['numClasses'] > 0:  # one row more for "no class", where the model was trained for guidance
            rows = config['numClasses'] + (1 if config['classDropoutProb'] > 0 else 0)
            self.label_embed = nn.Embedding(rows, config['timeDim'])
        self.tokenizer = nn.Conv2d(config['inChannels'], widths[0], 3, padding=1)
        self.encoder = nn.ModuleList()
        for i, width in enumerate(widths):
            stage = nn.ModuleDict({'blocks': blocks(i, widths[max(i - 1, 0)])})
            if i < stages - 1:
                stage['down'] = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.encoder.append(stage)
        self.decoder = nn.ModuleList()
        for i, (width, below) in enumerate(zip(widths, widths[1:])):
            up = nn.Conv2d(below, below, 3, padding=1)
            self.decoder.append(nn.ModuleDict({'up': up, 'blocks': blocks(i, below + width)}))
        outputs = config.get('outChannels') or config['inChannels']
        self.head = nn.ModuleDict(
            {'norm': group_norm(widths[0], config), 'conv': nn.Conv2d(widths[0], outputs, 3, padding=1)}
        )

    def forward(self, x, c_noise, labels=None):
        """F(x; c_noise, labels): x [B, C, S, S] scaled by c_in, c_noise [B]."""
        time = self.time_embed(c_noise)
        if labels is not None:
            time = time + self.label_embed(labels)
        h, skips = self.tokenizer(x), []
        for stage in self.encoder:
            for block in stage['blocks']:
                h = block(h, time)
            if 'down' in stage:
                skips.append(h)
                h = stage['down'](h)
        for stage in reversed(self.decoder):
            h = stage['up'](F.interpolate(h, scale_factor=2, mode='nearest'))
            h = torch.cat([h, skips.pop()], dim=1)
            for block in stage['blocks']:
                h = block(h, time)
        return self.head['conv'](F.silu(self.head['norm'](h)))


def group_norm(channels, config):
    return nn.GroupNorm(config.get('normGroups') or max(1, min(32, channels // 4)), channels)


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def per_stage(value, stages):
    return value if isinstance(value, list) else [value] * stages


def main():
    folder = Path(sys.argv[1])
    weights, metadata = read_safetensors(folder / 'model.safetensors')
    check, _ = read_safetensors(folder / 'check.safetensors')
    model = ImageDiffiT(json.loads(metadata['model'])['config']).eval()
    model.load_state_dict(weights)  # strict: every name and shape has to be there
    with torch.no_grad():
        output = model(check['x'], check['c_noise'], check.get('labels'))
    largest = check['output'].abs().max().item()
    difference = (output - check['output']).abs().max().item()
    print(f'torch {torch.__version__}: {len(weights)} tensors loaded, output {list(output.shape)} up to {largest:.3f}')
    print(f'largest difference {difference:.1e}, relative {difference / largest:.1e}')
    if not difference <= 1e-4 * largest or not math.isfinite(largest):
        raise SystemExit('The outputs differ.')
    print('PyTorch and diffit agree.')


if __name__ == '__main__':
    main()
