"""Makes test/fixtures/ops.safetensors: forward values and gradients of single operations, by PyTorch in float64.

Every case `c` stores c.in.<name>, c.out (and c.<extra> for further outputs), c.dout and c.grad.<name> = the gradient of
sum(out * dout); the metadata gives {op, inputs, ...parameters} of each case. Layouts are the package's: activations
[B, H, W, C] or token-major, conv weights [out, kh, kw, in].
"""

import itertools

import torch
import torch.nn.functional as F

from fixture import Rng, exact, save
from tmsa import windowed_attention

SEED = 20240
tensors, cases = {}, {}


def case(name, op, function, inputs, grads=None, extra=None, **parameters):
    """Runs function on the inputs and records values and gradients; grads names the inputs to differentiate."""
    grads = [k for k, v in inputs.items() if v.is_floating_point()] if grads is None else grads
    inputs = {k: v.clone().requires_grad_(k in grads) for k, v in inputs.items()}
    out = function(*inputs.values())
    out, others = out if isinstance(out, tuple) else (out, {})
    for key, value in inputs.items():
        tensors[f'{name}.in.{key}'] = value
    tensors[f'{name}.out'] = out
    for key, value in others.items():
        tensors[f'{name}.{key}'] = value
    if grads:
        dout = Rng.named(SEED + 1, name).normal(*out.shape)
        tensors[f'{name}.dout'] = dout
        (out * dout).sum().backward()
        for key in grads:
            tensors[f'{name}.grad.{key}'] = inputs[key].grad
    cases[name] = {'op': op, 'inputs': list(inputs), 'grads': grads, **parameters}


def rng(name):
    return Rng.named(SEED, name)


def unary():
    everywhere = [-100, -40, -20, -10, -5, -1, -1e-3, -1e-6, 0, 1e-6, 1e-3, 1, 5, 10, 20, 40, 100]
    positive = [1e-30, 1e-20, 1e-10, 1e-6, 1e-3, 0.1, 1, 3, 10, 1e3, 1e6, 1e10, 1e20, 1e30]
    # kind: (function, range of the random values, further values)
    kinds = {
        'neg': (torch.neg, (-6, 6), everywhere),
        'exp': (torch.exp, (-10, 10), [-87, -60, -30, -1e-6, 0, 1e-6, 30, 60, 88]),
        'log': (torch.log, (0.01, 10), positive),
        'sqrt': (torch.sqrt, (0.01, 10), positive),
        'rsqrt': (torch.rsqrt, (0.01, 10), [1e-10, 1e-6, 1e-3, 1, 1e3, 1e6, 1e10, 1e20]),
        'reciprocal': (torch.reciprocal, (0.05, 10), [-1e10, -1e3, -2, -1e-3, -1e-10, 1e-10, 1e-3, 2, 1e3, 1e10]),
        'sin': (torch.sin, (-10, 10), [-1000, -100, -31.4, -1e-6, 0, 1e-6, 1e-3, 31.4, 100, 1000]),
        'cos': (torch.cos, (-10, 10), [-1000, -100, -31.4, -1e-6, 0, 1e-6, 1e-3, 31.4, 100, 1000]),
        'tanh': (torch.tanh, (-6, 6), everywhere),
        'sigmoid': (torch.sigmoid, (-10, 10), everywhere),
        'relu': (torch.relu, (-6, 6), [v for v in everywhere if v]),
        'silu': (F.silu, (-10, 10), everywhere),
        'gelu_tanh': (lambda x: F.gelu(x, approximate='tanh'), (-6, 6), everywhere),
        'gelu_erf': (F.gelu, (-6, 6), everywhere),
        'abs': (torch.abs, (-6, 6), [v for v in everywhere if v]),
        'square': (torch.square, (-6, 6), everywhere),
    }
    for kind, (function, (low, high), values) in kinds.items():
        name = f'unary.{kind}'
        x = torch.cat([rng(name).uniform(low, high, 60), exact(values)])
        case(name, 'unary', function, {'x': x}, kind=kind)
    x = exact([0.0, -0.0, 1.5, float('inf'), float('-inf'), float('nan'), 3.4e38, 1e-45, -7.0])
    case('unary.is_finite', 'unary', lambda x: torch.isfinite(x).double(), {'x': x}, grads=[], kind='is_finite')


def binary():
    kinds = {
        'add': torch.add, 'sub': torch.sub, 'mul': torch.mul, 'div': torch.div,
        'maximum': torch.maximum, 'minimum': torch.minimum, 'pow': torch.pow,
        'equal': lambda a, b: (a == b).double(), 'less': lambda a, b: (a < b).double(),
    }
    shapes = {
        'same': ([3, 4, 5], [3, 4, 5]),
        'row': ([3, 4, 5], [5]),
        'column': ([3, 4, 5], [3, 4, 1]),
        'middle': ([3, 4, 5], [3, 1, 5]),
        'both': ([3, 1, 5], [1, 4, 1]),
        'scalar': ([3, 4, 5], []),
        'left': ([4, 1], [2, 1, 3, 4, 5]),
    }
    for (kind, function), (pattern, (sa, sb)) in itertools.product(kinds.items(), shapes.items()):
        name = f'binary.{kind}.{pattern}'
        r = rng(name)
        if kind in ('equal', 'less'):
            a, b = r.integers(4, *sa).double(), r.integers(4, *sb).double()
        elif kind == 'pow':
            a, b = r.uniform(0.2, 3, *sa), r.uniform(-3, 3, *sb)
        else:
            a, b = r.normal(*sa), r.normal(*sb)
            b = exact(b + 0.5 * b.sign()) if kind == 'div' else b
        case(name, 'binary', function, {'a': a, 'b': b}, grads=[] if kind in ('equal', 'less') else None, kind=kind)

    r = rng('where')
    inputs = {'condition': r.integers(2, 3, 4, 1).double(), 'a': r.normal(3, 4, 5), 'b': r.normal(5)}
    case('where', 'where', lambda condition, a, b: torch.where(condition != 0, a, b), inputs, grads=['a', 'b'])
    case('clamp', 'clamp', lambda x: x.clamp(-0.75, 1.25), {'x': rng('clamp').normal(6, 11)}, low=-0.75, high=1.25)
    case('affine', 'affine', lambda x: -1.5 * x + 0.25, {'x': rng('affine').normal(6, 11)}, scale=-1.5, shift=0.25)
    inputs = {k: rng(f'linear_combination.{k}').normal(4, 9) for k in 'abc'}
    case('linear_combination', 'linear_combination', lambda a, b, c: 0.5 * a - 2 * b + 3 * c, inputs,
         coefficients=[0.5, -2, 3])


def cast():
    x = exact([0.0, -0.0, 0.5, 0.99, -0.99, 1.5, -1.5, 2.5, 254.9, 255.5, 300.0, -3.0, 1e6 + 0.5, -1e6, 3e9, -3e9, 1e19,
               -1e19, float('inf'), float('-inf'), float('nan'), 3.14159, 1.00390625, 1.01171875, 65519.0, 65520.0,
               6e-8, 1e-5])

    def saturate(value, limits):
        if value != value:
            return 0
        return int(value) if limits.min <= value <= limits.max else limits.min if value < 0 else limits.max

    for label, dtype in (('u8', torch.uint8), ('i32', torch.int32), ('i64', torch.int64)):
        out = torch.tensor([saturate(v, torch.iinfo(dtype)) for v in x.tolist()], dtype=dtype)
        case(f'cast.{label}', 'cast', lambda x: out, {'x': x}, grads=[], dtype=label)
    for label, dtype in (('bf16', torch.bfloat16), ('f16', torch.float16)):
        # The rounded values (nearest, ties to even), stored as float32.
        case(f'cast.{label}', 'cast', lambda x: x.float().to(dtype).double(), {'x': x}, grads=[], dtype=label)


def reductions():
    kinds = {
        'sum': torch.sum, 'mean': torch.mean, 'max': lambda x, dim: x.max(dim).values, 'argmax': torch.argmax,
    }
    for (kind, function), axis, shape in itertools.product(kinds.items(), range(3), ([4, 5, 6], [2, 301, 3])):
        if shape[axis] == 2 or shape[axis] == 3:
            continue
        name = f'reduce.{kind}.{"long" if shape[axis] == 301 else f"axis{axis}"}'
        case(name, 'reduce', lambda x: function(x, dim=axis), {'x': rng(name).normal(*shape)},
             grads=[] if kind == 'argmax' else None, kind=kind, axis=axis)
    for shape in ([2, 3, 7], [5, 1], [3, 2, 65], [9]):
        name = f'softmax.n{shape[-1]}'
        case(name, 'softmax', lambda x: x.softmax(-1), {'x': rng(name).normal(*shape, scale=4)})
    for n, c in ((6, 10), (3, 1), (4, 37)):
        name = f'cross_entropy.c{c}'
        inputs = {'logits': rng(name).normal(n, c, scale=5), 'labels': rng(name).integers(c, n)}
        case(name, 'cross_entropy', lambda logits, labels: F.cross_entropy(logits, labels, reduction='none'), inputs)


def matrix():
    for (m, n, k), ta, tb in itertools.product(((7, 11, 9), (1, 1, 1), (19, 50, 33)), (False, True), (False, True)):
        name = f'matmul.{m}x{n}x{k}.{"t" if ta else "n"}{"t" if tb else "n"}'
        a, b = rng(name + 'a').normal(m, k), rng(name + 'b').normal(k, n)
        inputs = {'a': a.T if ta else a, 'b': b.T if tb else b}
        case(name, 'matmul', lambda a, b: (a.T if ta else a) @ (b.T if tb else b), inputs, transA=ta, transB=tb)
    shapes = {'both': ([3, 5, 7], [3, 7, 4]), 'sharedB': ([3, 5, 7], [7, 4]), 'sharedA': ([5, 7], [3, 7, 4])}
    for pattern, (sa, sb) in shapes.items():
        name = f'matmul.batched.{pattern}'
        case(name, 'matmul', torch.matmul, {'a': rng(name + 'a').normal(*sa), 'b': rng(name + 'b').normal(*sb)},
             transA=False, transB=False)

    activations = {'none': lambda x: x, 'gelu_tanh': lambda x: F.gelu(x, approximate='tanh'), 'silu': F.silu}
    for (activation, function), residual in itertools.product(activations.items(), (False, True)):
        name = f'linear.{activation}{".residual" if residual else ""}'
        r = rng(name)
        inputs = {'x': r.normal(2, 19, 13), 'w': r.normal(21, 13, scale=0.6), 'b': r.normal(21)}
        if residual:
            inputs['residual'] = r.normal(2, 19, 21)
        case(name, 'linear', lambda x, w, b, residual=0: function(x @ w.T + b) + residual, inputs,
             activation=activation)


def index():
    for axis in range(3):
        shapes = [[2, 3, 4] for _ in range(3)]
        for shape, size in zip(shapes, (1, 3, 5)):
            shape[axis] = size
        name = f'concat.axis{axis}'
        inputs = {key: rng(name + key).normal(*shape) for key, shape in zip('abc', shapes)}
        case(name, 'concat', lambda a, b, c: torch.cat([a, b, c], axis), inputs, axis=axis)
    for axis, start, stop in ((0, 1, 3), (1, 0, 2), (2, 3, 6)):
        name = f'slice.axis{axis}'
        case(name, 'slice', lambda x: x.narrow(axis, start, stop - start), {'x': rng(name).normal(4, 5, 6)},
             axis=axis, start=start, stop=stop)
    for order in ((1, 0), (0, 2, 1), (2, 0, 1), (0, 3, 1, 2), (3, 1, 0, 2), (0, 2, 4, 1, 3, 5)):
        name = f'permute.{"".join(map(str, order))}'
        case(name, 'permute', lambda x: x.permute(order), {'x': rng(name).normal(*[3, 4, 2, 5, 2, 3][: len(order)])},
             axes=order)
    # Zero padding [before, after] of each axis.
    for label, padding in (('last', [[0, 0], [0, 0], [1, 2]]), ('image', [[0, 0], [1, 1], [1, 1], [0, 0]]),
                           ('corner', [[0, 0], [0, 1], [0, 1], [0, 0]])):
        name = f'pad.{label}'
        flat = [amount for pair in reversed(padding) for amount in pair]
        case(name, 'pad', lambda x: F.pad(x, flat), {'x': rng(name).normal(*[2, 3, 4, 5][: len(padding)])},
             padding=padding)
    r = rng('embedding')
    ids = r.integers(7, 3, 6)
    ids[0, :3] = 2  # a repeated row, next to rows that may never be named
    case('embedding', 'embedding', lambda table, ids: table[ids], {'table': r.normal(9, 10), 'ids': ids})
    for b, h, w, c in ((2, 3, 5, 4), (1, 1, 1, 1), (1, 4, 2, 9)):
        name = f'upsample2x.{h}x{w}x{c}'
        inputs = {'x': rng(name).normal(b, h, w, c)}
        case(name, 'upsample2x', lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2), inputs)


def nhwc(function):
    """Applies an NCHW function to an NHWC tensor."""
    return lambda x, *rest: function(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


def convolutions():
    for name, b, h, w, i, o, k, stride, pad in (('c3o5', 2, 6, 5, 3, 5, 3, 1, 1), ('c20o33', 1, 5, 7, 20, 33, 3, 2, 1),
                                                ('c16o3', 1, 8, 8, 16, 3, 3, 1, 1), ('1x1', 2, 3, 3, 7, 10, 1, 1, 0)):
        name = f'conv2d.{name}'
        r = rng(name)
        inputs = {'x': r.normal(b, h, w, i), 'w': r.normal(o, k, k, i, scale=0.3), 'b': r.normal(o)}
        case(name, 'conv2d', lambda x, w, b: nhwc(F.conv2d)(x, w.permute(0, 3, 1, 2), b, stride, pad), inputs,
             stride=stride, pad=pad)


def norms():
    for shape, eps in (([2, 5, 24], 1e-6), ([7, 33], 1e-5), ([3, 5], 1e-5)):
        name = f'layer_norm.c{shape[-1]}'
        r = rng(name)
        c = shape[-1]
        inputs = {'x': r.normal(*shape, scale=2), 'w': r.normal(c), 'b': r.normal(c)}
        inputs['x'] = exact(inputs['x'] + 3)  # a mean that a one-pass variance would suffer from
        case(name, 'layer_norm', lambda x, w, b: F.layer_norm(x, [c], w, b, eps), inputs, eps=eps)
    sizes = (([2, 4, 4, 16], 4), ([2, 5, 3, 12], 3), ([1, 7, 1, 35], 5))
    for (shape, groups), silu in itertools.product(sizes, (False, True)):
        name = f'group_norm.c{shape[-1]}g{groups}{".silu" if silu else ""}'
        r = rng(name)
        c = shape[-1]
        inputs = {'x': exact(r.normal(*shape, scale=2) + 1), 'w': r.normal(c), 'b': r.normal(c)}
        activation = F.silu if silu else lambda v: v
        function = nhwc(lambda x, w, b: activation(F.group_norm(x, groups, w, b, 1e-5)))
        case(name, 'group_norm', function, inputs, groups=groups, eps=1e-5, silu=silu)


def attention():
    # name, batch, grid, window, heads, head size, time token, table
    rows = (
        ('8x8.w2.d8', 2, (8, 8), (2, 2), 2, 8, True, True),
        ('8x8.w4.d24', 1, (8, 8), (4, 4), 2, 24, True, True),
        ('8x8.w8.d24', 2, (8, 8), (8, 8), 1, 24, True, True),
        ('4x8.w4.d72', 1, (4, 8), (4, 4), 1, 72, True, True),
        ('8x8.w8.d72', 1, (8, 8), (8, 8), 1, 72, True, True),
        ('16x16.w2.d8', 1, (16, 16), (2, 2), 1, 8, True, True),
        ('16x16.w4.d8', 1, (16, 16), (4, 4), 1, 8, True, True),
        ('16x16.w8.d8', 1, (16, 16), (8, 8), 1, 8, True, True),
        ('4x12.w2x4.d8', 2, (4, 12), (2, 4), 2, 8, True, True),
        ('4x4.w4.d8.notime', 2, (4, 4), (4, 4), 2, 8, False, True),
        ('n35.d8.time', 2, (1, 35), (1, 35), 2, 8, True, False),
        ('n35.d24', 1, (1, 35), (1, 35), 1, 24, False, False),
        ('n35.d72', 1, (1, 35), (1, 35), 1, 72, False, False),
    )
    for label, b, (h, w), window, heads, d, time, table in rows:
        name = f'attention.{label}'
        r = rng(name)
        inputs = {'qkv': r.normal(b, h, w, 3 * heads * d)}
        if time:
            inputs['time'] = r.normal(b, 3 * heads * d)
        if table:
            inputs['table'] = r.normal((2 * window[0] - 1) * (2 * window[1] - 1), heads)
        scale = d**-0.5

        def function(qkv, *rest):
            return windowed_attention(qkv, rest[0] if time else None, rest[-1] if table else None, heads, window, scale)

        case(name, 'attention', function, inputs, heads=heads, window=window, scale=scale)


if __name__ == '__main__':
    for group in (unary, binary, cast, reductions, matrix, index, convolutions, norms, attention):
        group()
    save('ops', tensors, {'seed': SEED, 'cases': cases})
