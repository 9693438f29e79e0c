"""Checks what this library computed against PyTorch in f64, beside what PyTorch itself makes of the same inputs in the same dtype.

    diffit bench attention --device cuda --dtype bf16 --save attention.safetensors     (also: gemm, conv)
    python3 bench/peers/verify.py attention.safetensors --device cuda [--out errors.json]

The error of a tensor is |it - reference| / |reference| (Frobenius norms). Ours must stay under a limit by dtype, and in bf16 and f16
under 1.25 times PyTorch's own. NaN never passes. Exit code 1 when a tensor fails.
"""

import argparse
import json
import sys

import torch
import torch.nn.functional as F

from attention import position_index
from common import read_safetensors

LIMITS = {'f32': 2e-5, 'bf16': 1e-2, 'f16': 2e-3}
SLACK = 1.25


def attention(spec, t):
    """y and, backward, the gradients; in the dtype of the tensors given."""
    sizes = spec['sizes']
    window, heads, dim, side = (sizes[name] for name in ('window', 'heads', 'dim', 'side'))
    leaves = {name: t[name].clone().requires_grad_() for name in ('qkv', 'time', 'table')}
    batch, n, w = t['qkv'].shape[0], side // window, window
    qkv = leaves['qkv'] + leaves['time'][:, None, None].to(t['qkv'].dtype)
    if 'time' in t:  # the k part cancels in exact arithmetic; leaving it out keeps its rounding out of the comparison
        c = heads * dim
        part = torch.cat([leaves['time'][:, :c], torch.zeros_like(leaves['time'][:, :c]), leaves['time'][:, 2 * c :]], 1)
        qkv = leaves['qkv'] + part[:, None, None].to(t['qkv'].dtype)
    q, k, v = qkv.view(batch, n, w, n, w, 3, heads, dim).permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, heads, w * w, dim).unbind(0)
    mask = leaves['table'][position_index(w).to(q.device)].permute(2, 0, 1)[None].to(q.dtype)
    logits = q @ k.transpose(-1, -2) * dim**-0.5 + mask
    y = logits.softmax(-1) @ v
    y = y.view(batch, n, n, heads, w, w, dim).permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, side, side, heads * dim)
    if sizes['pass'] == 'forward':
        return {'y': y.detach()}
    lse = logits.detach().float() if q.dtype != torch.float64 else logits.detach()
    lse = lse.logsumexp(-1).view(batch, n, n, heads, w, w).permute(0, 3, 1, 4, 2, 5).reshape(batch, heads, side, side)
    y.backward(t['dy'])
    return {'y': y.detach(), 'lse': lse, **{f'd{name}': leaf.grad for name, leaf in leaves.items()}}


def gemm(spec, t):
    layout, epilogue = spec['sizes']['layout'], spec['sizes']['epilogue']
    a, b = (t[x].t() if letter == 't' else t[x] for x, letter in zip('ab', layout))
    y = a @ b
    if 'bias' in t:
        y = y + t['bias'].to(y.dtype)
    if 'gelu' in epilogue:
        y = F.gelu(y, approximate='tanh')
    return {'y': y + t['residual'] if 'residual' in t else y}


def conv(spec, t):
    """NHWC in and out, weights [O, kh, kw, I]."""
    sizes = spec['sizes']
    nchw, nhwc = (lambda x: x.permute(0, 3, 1, 2)), (lambda x: x.permute(0, 2, 3, 1))
    stride, pad = sizes['stride'], (sizes['kernel'] - 1) // 2
    if sizes['pass'] == 'forward':
        return {'y': nhwc(F.conv2d(nchw(t['x']), nchw(t['w']), t['bias'].to(t['x'].dtype), stride, pad))}
    dy = nchw(t['dy'])
    if sizes['pass'] == 'dgrad':
        shape = (sizes['batch'], sizes['in'], sizes['side'], sizes['side'])
        return {'dx': nhwc(torch.nn.grad.conv2d_input(shape, nchw(t['w']), dy, stride, pad))}
    shape = (sizes['out'], sizes['in'], sizes['kernel'], sizes['kernel'])
    return {'dw': nhwc(torch.nn.grad.conv2d_weight(nchw(t['x']), shape, dy, stride, pad))}


COMPUTE = {'attention': attention, 'gemm': gemm, 'conv': conv}


def error(value, reference):
    scale = reference.double().norm()
    return float((value.double() - reference.double()).norm() / scale) if scale > 0 else float(value.double().norm())


def main():
    parser = argparse.ArgumentParser(description='Check the output of "diffit bench --save" against PyTorch in f64.')
    parser.add_argument('file')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', help='file of the JSON report')
    options = parser.parse_args()
    tensors, metadata = read_safetensors(options.file)
    dtype, rows, failed = metadata['dtype'], [], 0
    for spec in json.loads(metadata['specs']):
        given = {name[len(spec['id']) + 1 :]: x.to(options.device) for name, x in tensors.items() if name.startswith(spec['id'] + '/')}
        compute = COMPUTE[spec['group']]
        reference = compute(spec, {name: x.double() for name, x in given.items()})
        try:
            own = compute(spec, given)
        except RuntimeError as problem:  # an operation PyTorch lacks in this dtype: ours still has its limit
            print(f"{spec['id']}: PyTorch in {dtype}: {str(problem).splitlines()[0]}", file=sys.stderr)
            own = {}
        for name, expected in reference.items():
            ours = error(given[name], expected)
            theirs = error(own[name], expected) if name in own else None
            limit = LIMITS[dtype] if dtype == 'f32' or theirs is None else min(LIMITS[dtype], SLACK * theirs)
            passed = ours <= limit  # False for NaN
            failed += not passed
            rows.append({'id': spec['id'], 'tensor': name, 'dtype': dtype, 'error': ours, 'torch': theirs, 'limit': limit, 'passed': passed})
            beside = '' if theirs is None else f', PyTorch {theirs:.2e}'
            print(f"{'ok    ' if passed else 'FAILED'} {spec['id']} {name}: {ours:.2e}{beside}")
    if options.out:
        with open(options.out, 'w') as file:
            json.dump({'schema': 1, 'kind': 'verify', 'rows': rows}, file, indent=2)
    print(f'{len(rows) - failed} passed, {failed} failed')
    sys.exit(1 if failed or not rows else 0)


if __name__ == '__main__':
    main()
