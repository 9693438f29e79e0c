"""Copies, matrix products (cuBLASLt through torch.mm) and convolutions (cuDNN, channels last)."""

import torch
import torch.nn.functional as F

from common import DTYPES, sets_for


def time_copy(report, timer, spec, device, dtype, quick):
    sizes = spec['sizes']
    if sizes['kind'] == 'product':
        make = lambda: torch.randn(sizes['n'], sizes['n'], device=device, dtype=DTYPES[dtype])
        a, b, y = make(), make(), make()
        work = lambda: timer.measure(lambda _: torch.mm(a, b.t(), out=y), graph=True)
    else:
        count = sizes['bytes'] // 4
        sets = [(torch.randn(count, device=device), torch.empty(count, device=device)) for _ in range(sets_for(spec['bytes'], quick))]
        work = lambda: timer.measure(lambda i: sets[i][1].copy_(sets[i][0]), len(sets), graph=True)
    report.add(spec, 'torch', work)
    ms = report.body['results'][-1].get('ms')
    ceilings = report.body['ceilings'] or {}
    if ms and sizes['kind'] == 'product':
        ceilings['arithmetic'] = 1000 * spec['flops'] / ms['median']
    elif ms:
        ceilings['copy'] = 1000 * spec['bytes'] / ms['median']
    report.body['ceilings'] = ceilings
    report.write()


def time_gemm(report, timer, spec, device, dtype, quick):
    sizes = spec['sizes']
    m, n, k, layout, epilogue = (sizes[name] for name in ('m', 'n', 'k', 'layout', 'epilogue'))
    make = lambda *shape: torch.randn(*shape, device=device, dtype=DTYPES[dtype])
    count = sets_for(spec['bytes'], quick)
    a = [make(k, m).t() if layout[0] == 't' else make(m, k) for _ in range(count)]
    b = [make(n, k).t() if layout[1] == 't' else make(k, n) for _ in range(count)]
    bias, residual, y = make(n), make(m, n), make(m, n)
    variants = {}
    if epilogue == 'none':
        variants['torch.mm'] = lambda i: torch.mm(a[i], b[i], out=y)
    elif epilogue == 'bias':
        variants['F.linear'] = lambda i: F.linear(a[i], b[i].t(), bias)
    elif epilogue == 'bias+residual':
        variants['F.linear, add'] = lambda i: F.linear(a[i], b[i].t(), bias).add_(residual)
    else:
        variants['F.linear, gelu'] = lambda i: F.gelu(F.linear(a[i], b[i].t(), bias), approximate='tanh')
        variants['_addmm_activation'] = lambda i: torch._addmm_activation(bias, a[i], b[i], use_gelu=True)
    for name, run in variants.items():
        with torch.no_grad():
            report.add(spec, name, lambda: timer.measure(run, count, graph=True))


def time_conv(report, timer, spec, device, dtype, quick):
    sizes = spec['sizes']
    batch, side, inputs, outputs, kernel, stride = (sizes[n] for n in ('batch', 'side', 'in', 'out', 'kernel', 'stride'))
    pad, out = (kernel - 1) // 2, -(-side // stride)
    make = lambda *shape: torch.randn(*shape, device=device, dtype=DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    count = sets_for(spec['bytes'], quick)
    w, bias = make(outputs, inputs, kernel, kernel), torch.randn(outputs, device=device, dtype=DTYPES[dtype])
    x = [make(batch, inputs, side, side) for _ in range(count)]
    dy = [make(batch, outputs, out, out) for _ in range(count)]
    wants = {'dgrad': [True, False, False], 'wgrad': [False, True, False]}
    def run(i):
        if sizes['pass'] == 'forward':
            return F.conv2d(x[i], w, bias, stride, pad)
        return torch.ops.aten.convolution_backward(
            dy[i], x[i], w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, wants[sizes['pass']])
    with torch.no_grad():
        report.add(spec, 'conv2d channels_last', lambda: timer.measure(run, count, graph=True))
