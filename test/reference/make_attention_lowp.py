"""Makes test/fixtures/attention_lowp.json: how far PyTorch's eager attention in bf16 and f16 is from float64, per case.

Everything of the peer is in the low dtype, rounded after every operation as eager PyTorch does. Errors are
||x - exact|| / ||x|| of the output and of every gradient; inputs are the numbers of test/helpers.ts, rounded.
"""

import json

import torch

from fixture import FIXTURES
from tmsa import windowed_attention

CASES = {
    # name: (batch, (height, width), heads, head dim, window)
    'one window of 4x4': (3, (4, 4), 3, 72, (4, 4)),
    'windows of 4x4': (2, (8, 12), 5, 32, (4, 4)),
    'windows of 2x2, head dim 40': (3, (4, 6), 2, 40, (2, 2)),
    'windows of 8x8': (1, (16, 24), 2, 72, (8, 8)),
    'windows of 8x8, head dim 64': (3, (8, 16), 2, 64, (8, 8)),
    'a grid of 8x4': (3, (8, 4), 2, 96, (8, 4)),
    'a grid of 8x8': (3, (8, 8), 1, 128, (8, 8)),
    'a grid of 16x16': (3, (16, 16), 1, 72, (16, 16)),
    'a grid of 16x16, head dim 64': (1, (16, 16), 2, 64, (16, 16)),
    'a grid of 5x16, head dim 40': (1, (5, 16), 1, 40, (5, 16)),
    'windows of 6x16': (2, (6, 32), 1, 32, (6, 16)),
    'a grid of 7x32': (1, (7, 32), 1, 96, (7, 32)),
    'a grid of 2x48': (1, (2, 48), 1, 128, (2, 48)),
    'a grid of 9x32': (1, (9, 32), 1, 128, (9, 32)),
    'a grid of 5x64': (1, (5, 64), 1, 128, (5, 64)),
    'a grid of 2x64, head dim 72': (2, (2, 64), 1, 72, (2, 64)),
    'a grid of 32x32': (1, (32, 32), 1, 32, (32, 32)),
    'a grid of 9x11': (1, (9, 11), 2, 72, (9, 11)),
    'head dim 36': (2, (4, 4), 2, 36, (4, 4)),
}


def numbers(seed, shape, scale):
    """The numbers of test/helpers.ts."""
    state, values = (seed * 2654435761 + 12345) % 2**32, []
    for _ in range(torch.Size(shape).numel()):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(((state >> 8) * 2**-23 - 1) * scale)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def gradients(qkv, time, table, dy, heads, window, scale):
    leaves = [x.clone().requires_grad_() for x in (qkv, time, table)]
    y, _ = windowed_attention(*leaves, heads, window, scale)
    y.backward(dy)
    return dict(zip(('y', 'dqkv', 'dtime', 'dtable'), (y.detach(), *(x.grad for x in leaves))))


def main():
    cases = []
    for name, (b, (h, w), heads, d, (wh, ww)) in CASES.items():
        c, errors = heads * d, {}
        inputs = [
            numbers(1, (b, h, w, 3 * c), 2),
            numbers(2, (b, 3 * c), 1),
            numbers(3, ((2 * wh - 1) * (2 * ww - 1), heads), 1),
            numbers(4, (b, h, w, c), 1),
        ]
        for key, dtype in ('bf16', torch.bfloat16), ('f16', torch.float16):
            qkv, time, table, dy = inputs
            qkv, dy = qkv.to(dtype), dy.to(dtype)
            exact = gradients(*(x.double() for x in (qkv, time, table, dy)), heads, (wh, ww), d**-0.5)
            low = gradients(*(x.to(dtype) for x in (qkv, time, table, dy)), heads, (wh, ww), d**-0.5)
            errors[key] = {k: float(f'{float((low[k].double() - x).norm() / x.norm()):.3g}') for k, x in exact.items()}
        cases.append(
            {'name': name, 'b': b, 'h': h, 'w': w, 'heads': heads, 'd': d, 'wh': wh, 'ww': ww, 'errors': errors}
        )
    text = json.dumps({'torch': torch.__version__, 'cases': cases}, indent=1)
    (FIXTURES / 'attention_lowp.json').write_text(text + '\n')


if __name__ == '__main__':
    main()
