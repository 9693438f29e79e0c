"""PyTorch's side of the CPU benchmark (bench/cpu/station.ts says what it is asked): test/reference's twins on the weights and inputs
that diffit saved. Ways: `eager` is the straightforward module, `sdpa` has its attention in one call with the bias as a float mask, and
`compile...` is that through torch.compile, which needs a C++ compiler here.
"""

import contextlib
import gc
import os
import sys

import torch
import torch.nn.functional as F

import attention
from common import read_safetensors
from serve import reset_peak, resident_peak, serve, stopwatch, write_safetensors

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'test', 'reference'))
import image_diffit  # noqa: E402
import latent  # noqa: E402

PLAIN = (latent.Attention.forward, image_diffit.Attention.forward)
import networks  # noqa: E402  replaces both

latent.Attention.forward, image_diffit.Attention.forward = PLAIN


class FusedAttention(latent.Attention):
    forward = networks.fused_attention


class FusedWindowAttention(image_diffit.Attention):
    forward = networks.fused_window_attention


FUSED = {latent.Attention: FusedAttention, image_diffit.Attention: FusedWindowAttention}
tasks, states = {}, {}


def state_of(path):
    """One copy of the weights for all ways."""
    if path not in states:
        states.clear()
        states[path] = read_safetensors(path)[0]
    return states[path]


@contextlib.contextmanager
def uninitialized():
    """Modules without random numbers: the weights come from a file."""
    classes = [torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding]
    kept = [c.reset_parameters for c in classes]
    for c in classes:
        c.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for c, reset in zip(classes, kept):
            c.reset_parameters = reset


def network(request, way):
    work = request['work']
    config = dict(work['config'])
    image = work['sizes']['kind'] == 'ImageDiffiT'
    with uninitialized():
        if image:
            for name in ('dropout', 'classDropoutProb'):
                config.pop(name, None)
            model = image_diffit.ImageDiffiT(**config)
        else:
            config = {'patchSize': 2, 'inChannels': 4, 'mlpRatio': 4, 'numClasses': 1000, **config}
            model = latent.LatentTransformer(True, **config)
    train = work['group'] == 'train'
    state = state_of(request['weights'])
    # Training changes its weights: a copy, and no other beside it.
    model.load_state_dict(state, assign=not train)
    if train:
        states.clear()
    if image:
        model = model.to(memory_format=torch.channels_last)
    if way != 'eager':
        for module in model.modules():
            module.__class__ = FUSED.get(type(module), type(module))
    return model, image


def compiled(model, way, probe):
    """The model through torch.compile; with `frozen` its weights are constants, packed once."""
    import torch._inductor.config
    # Nothing may come from the way before it.
    torch._dynamo.reset()
    run = torch.compile(model, dynamic=False)
    with torch._inductor.config.patch(freezing='frozen' in way):
        probe(run)
    return run


def forward(request, given):
    way, half = request['way'], request['work']['dtype'] == 'bf16'
    model, image = network(request, way)
    model.eval().requires_grad_(False)
    autocast = half and way.endswith('autocast')
    x, t, y = given['x'], given['t'], given.get('y')
    if half and not autocast:
        model, x = model.bfloat16(), x.bfloat16()
        t = t.bfloat16() if image else t
    if image:
        x = x.contiguous(memory_format=torch.channels_last)
    def call(of):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            return of(x, t, y)
    run = compiled(model, way, call) if way.startswith('compile') else model
    return (lambda: call(run)), (lambda: {'y': call(run)})


def train(request, given):
    """AdamW in its fused form; outputs are the losses of the first three steps."""
    way = request['way']
    model, image = network(request, 'sdpa' if way.startswith('compile') else way)
    model.train()
    x, t, y = given['x'], given['t'], given.get('y')
    if image:
        x = x.contiguous(memory_format=torch.channels_last)
        loss_of = lambda run: image_diffit.edm_loss(run, x, given['level'], given['noise'], None)
    else:
        loss_of = lambda run: ((run(x, t, y) - given['target']) ** 2).mean()
    run = torch.compile(model, dynamic=False) if way.startswith('compile') else model
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    losses = []
    def step():
        loss = loss_of(run)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        if len(losses) < 3:
            losses.append(loss.detach())
    def outputs():
        while len(losses) < 3:
            step()
        return {'losses': torch.stack(losses)}
    return step, outputs


def gemm(request, given):
    sizes = request['work']['sizes']
    a, b, bias = given['a'], given['b'], given.get('bias')
    y = torch.empty(a.shape[0], b.shape[0])
    runs = {
        'none': lambda: torch.mm(a, b.t(), out=y),
        'bias+gelu': lambda: F.gelu(F.linear(a, b, bias), approximate='tanh'),
        'bias+residual': lambda: F.linear(a, b, bias).add_(given['residual']),
    }
    run = torch.no_grad()(runs[sizes['epilogue']])
    return run, lambda: {'y': run()}


def attend(request, given):
    case = attention.Case(request['work'], 'cpu', 'f32', 1)
    with torch.no_grad():
        case.qkv[0].copy_(given['qkv'])
        case.table.copy_(given['table'])
    run = attention.IMPLEMENTATIONS['eager' if request['way'] == 'eager' else 'sdpa mask'](case)
    if not case.backward:
        mask = case.mask()
        call = torch.no_grad()(lambda: run(case.qkv[0], mask))
        return call, lambda: {'y': call()}
    y = run(case.qkv[0], case.mask())
    step = lambda: torch.autograd.grad(y, [case.qkv[0], case.table], given['dy'], retain_graph=True)
    return step, lambda: dict(zip(['dqkv', 'dtable'], step()))


GROUPS = {'gemm': gemm, 'attention': attend, 'forward': forward, 'train': train}


def write_outputs(path, outputs):
    arrays = {name: x.detach().float().contiguous() for name, x in outputs.items()}
    write_safetensors(path, {name: (x.shape, x.numpy().tobytes()) for name, x in arrays.items()})


def begin(request):
    return GROUPS[request['work']['group']](request, read_safetensors(request['inputs'])[0])


def prepare(request):
    run, outputs = begin(request)
    write_outputs(request['output'], outputs())
    tasks[request['way']] = run
    gc.collect()
    reset_peak()


def reference(request):
    """The straightforward module in f32, for what is compared with it."""
    work = {**request['work'], 'dtype': 'f32'}
    write_outputs(request['output'], begin({**request, 'work': work, 'way': 'eager'})[1]())


def export(request):
    """The straightforward module as ONNX, its weights inside."""
    given = read_safetensors(request['inputs'])[0]
    model = network(request, 'eager')[0].eval().requires_grad_(False)
    inputs = tuple(given[name] for name in ('x', 't', 'y') if name in given)
    names = [name for name in ('x', 't', 'y') if name in given]
    torch.onnx.export(model, inputs, request['path'], input_names=names, output_names=['output'], external_data=False,
                      dynamo=True, verbose=False)


def release(_):
    tasks.clear()
    torch._dynamo.reset()
    gc.collect()


if __name__ == '__main__':
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    torch.manual_seed(0)
    serve({'torch': torch.__version__, 'python': sys.version.split()[0]}, {
        'prepare': prepare,
        'reference': reference,
        'export': export,
        'time': lambda request: stopwatch(tasks[request['way']], request),
        'rss': resident_peak,
        'release': release,
    })
