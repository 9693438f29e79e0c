"""Makes test/fixtures/image_diffit_<variant>.safetensors and train_image20.safetensors.

A variant holds sd.<parameter>, in.x, in.c_noise, in.labels (class-conditional), in.augment (augmentation labels), in.dout, act.token (time token), out,
and the gradients of sum(out * dout): grad.<parameter>, grad.x. The training run holds sd0.*, in.* of 20 steps, losses
and final.*. Names and layouts are PyTorch's. `float32` in the metadata is the deviation of the same code run in
float32, relative to each tensor's largest value. Before anything is written, the twin is checked against the goldens.
"""

import copy

import torch
from safetensors import safe_open
from torch import nn

from fixture import FIXTURES, Rng, exact, save
from image_diffit import Attention, ImageDiffiT, ResBlock, edm_denoise, edm_loss

SEED = 5152
BASE = {'imgResolution': 16, 'inChannels': 3, 'baseChannels': 16, 'channelMult': [1, 2], 'numBlocks': 1,
        'windowSize': 4, 'timeDim': 64, 'numClasses': 0, 'channelsPerHead': 8, 'timeEmbedding': 'positional',
        'conditioning': 'tmsa'}
SMALL = {**BASE, 'inChannels': 1, 'baseChannels': 8, 'timeDim': 32}
VARIANTS = {
    'tmsa': BASE,
    'labels': {**SMALL, 'numClasses': 10, 'numBlocks': [1, 2], 'channelsPerHead': 64},
    'fourier': {**SMALL, 'timeEmbedding': 'fourier', 'channelMult': [1, 1, 2], 'windowSize': 8},
    'adaln': {**SMALL, 'baseChannels': 16, 'channelMult': [1, 1], 'conditioning': 'adaln', 'numClasses': 10},
    'bias_only': {**SMALL, 'conditioning': 'bias-only', 'inChannels': 3, 'outChannels': 6, 'windowSize': [4, 2]},
    'mlp_only': {**SMALL, 'conditioning': 'mlp-only', 'mlpRatio': 2, 'normGroups': 2},
    'augment': {**SMALL, 'imgResolution': 8, 'channelMult': [1], 'numClasses': 3, 'augmentDim': 9},
}


def worst(actual, expected):
    """Largest |a - b| over the tensors, each relative to its own largest value."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(actual, expected, strict=True)]
    return max(float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-20)) for a, b in pairs)


def read(path):
    with safe_open(FIXTURES / path, 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}


def check_against_golden(name, module, inputs, rename=lambda key: key):
    """The twin's module with a golden's weights has to give the golden's output and gradients."""
    golden = read(f'goldens/{name}.safetensors')
    module = module.double()
    state = {rename(k[3:]): v for k, v in golden.items() if k.startswith('sd.') and not k.endswith('position_index')}
    module.load_state_dict(state)
    x = inputs(golden['in.x']).requires_grad_()
    token = golden['in.temb'].requires_grad_()
    out = module(x, token).reshape(golden['out'].shape)
    (out * golden['in.dout']).sum().backward()
    grads = {rename(k[5:]): v for k, v in golden.items() if k.startswith('grad.')}
    found = {k: p.grad for k, p in module.named_parameters()}
    found |= {'x': x.grad.reshape(golden['in.x'].shape), 'temb': token.grad}
    assert found.keys() == grads.keys(), (found.keys(), grads.keys())
    error = max(worst([out], [golden['out']]), worst([found[k] for k in grads], grads.values()))
    assert error < 1e-6, f'{name}: the twin differs by {error}'
    print(f'golden {name}: the twin agrees to {error:.1e}')


def check_goldens():
    grid = lambda x: x.reshape(-1, 4, 4, x.shape[-1])
    check_against_golden('tmsa', Attention(32, 4, 4, 32, 'tmsa'), grid)
    check_against_golden('tmsa_temb20', Attention(32, 4, 4, 20, 'tmsa'), grid)
    check_against_golden('tmsa_windowed', Attention(32, 4, 4, 32, 'tmsa'), lambda x: x)
    mlp = lambda key: f'mlp.{key}' if key.startswith('fc') else key
    check_against_golden('image_block', ResBlock(32, 64, 4, 4, 64, groups=32), lambda x: x, mlp)
    check_against_golden('image_block_same', ResBlock(32, 32, 2, 4, 48, groups=32), lambda x: x, mlp)

    g = read('goldens/edm.safetensors')
    toy = lambda x, c_noise, labels=None: torch.tanh(0.8 * x + 0.3 * c_noise.view(-1, 1, 1, 1))
    loss = edm_loss(toy, g['loss.images'], g['loss.rnd_normal'].flatten(), g['loss.noise'])
    error = max(worst([edm_denoise(toy, g['pre.x'], g['pre.sigma'])], [g['pre.D_x']]), worst([loss], [g['loss.mean']]))
    assert error < 1e-6, f'edm: the twin differs by {error}'
    print(f'golden edm: the twin agrees to {error:.1e}')


def initialise(model, rng):
    """Random weights under which every path matters: nothing is zero, gates and tables included. Exact in float32."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'norm' in name:
                p.copy_(exact(rng.normal(*p.shape, scale=0.3) + (1 if name.endswith('weight') else 0)))
            elif name.endswith('table') or name.startswith('label_embed'):
                p.copy_(rng.normal(*p.shape))
            elif p.dim() == 1:
                p.copy_(rng.normal(*p.shape, scale=0.2))
            else:
                p.copy_(rng.normal(*p.shape, scale=p[0].numel() ** -0.5))
        for buffer in model.buffers():
            buffer.copy_(rng.normal(*buffer.shape, scale=16))
    return model


def run(model, inputs):
    """Output, and gradients of sum(out * dout) for the parameters and x."""
    x = inputs['x'].clone().requires_grad_()
    model.zero_grad()
    out = model(x, inputs['c_noise'], inputs.get('labels'), inputs.get('augment'))
    (out * inputs['dout']).sum().backward()
    return out.detach(), {**{k: p.grad.clone() for k, p in model.named_parameters()}, 'x': x.grad}


def to_float32(inputs):
    return {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}


def make_variant(name, config):
    rng = Rng.named(SEED, name)
    model = initialise(ImageDiffiT(**config).double(), rng)
    size, batch = config['imgResolution'], 3 if config['numClasses'] else 2
    # c_noise spans ln(sigma)/4 for sigma 0.002..80; less for fourier, whose features float32 would lose digits of.
    low, high = (-0.3, 0.3) if config['timeEmbedding'] == 'fourier' else (-1.5, 1.1)
    inputs = {'x': rng.normal(batch, config['inChannels'], size, size), 'c_noise': rng.uniform(low, high, batch),
              'dout': rng.normal(batch, config.get('outChannels', config['inChannels']), size, size)}
    if config['numClasses']:
        inputs['labels'] = rng.integers(config['numClasses'], batch)
    if 'augmentDim' in config:
        inputs['augment'] = rng.normal(batch, config['augmentDim'])
    out, grads = run(model, inputs)
    with torch.no_grad():
        token = model.token(inputs['c_noise'], inputs.get('labels'), inputs.get('augment'))
    out32, grads32 = run(copy.deepcopy(model).float(), to_float32(inputs))
    deviation = {'out': worst([out32], [out]), 'grad': worst(grads32.values(), grads.values())}
    print(name, deviation, 'smallest gradient', min((float(g.abs().max()), k) for k, g in grads.items()))
    save(f'image_diffit_{name}', {
        **{f'sd.{k}': v for k, v in model.state_dict().items()}, **{f'in.{k}': v for k, v in inputs.items()},
        'act.token': token, 'out': out, **{f'grad.{k}': v for k, v in grads.items()},
    }, {'config': config, 'seed': SEED, 'float32': deviation})


def train(model, data):
    """20 steps of Adam on the EDM loss; the losses before each update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = edm_loss(model, *(data[k][step] for k in ('images', 'rnd_normal', 'noise', 'labels')))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def without_keys(state):
    """The tensors without the attention's k rows: their gradient is 0 up to rounding noise, which Adam amplifies."""
    drop = lambda v: torch.cat([v.chunk(3)[0], v.chunk(3)[2]])
    return [drop(v) if k.endswith(('qkv.bias', 'qkv_temb.bias', 'qkv_temb.weight')) else v for k, v in state.items()]


def make_training():
    config = {**SMALL, 'baseChannels': 16, 'channelMult': [1, 1], 'numClasses': 10}
    rng = Rng.named(SEED, 'train')
    model = initialise(ImageDiffiT(**config).double(), rng)
    # Smooth images of about unit range: a random plane wave per image, so there is something to learn.
    steps, batch, size = 20, 4, config['imgResolution']
    wave, phase = rng.uniform(-0.8, 0.8, steps, batch, 2, 1, 1), rng.uniform(0, 6, steps, batch, 1, 1)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    images = exact(torch.sin(wave[:, :, 0] * row + wave[:, :, 1] * column + phase))[:, :, None]
    data = {'images': images, 'rnd_normal': rng.normal(steps, batch), 'noise': rng.normal(*images.shape),
            'labels': rng.integers(10, steps, batch)}
    initial = copy.deepcopy(model)
    losses = train(model, data)
    model32 = copy.deepcopy(initial).float()
    losses32 = train(model32, to_float32(data))
    deviation = {'losses': worst([losses32], [losses]),
                 'final': worst(without_keys(model32.state_dict()), without_keys(model.state_dict()))}
    print('train_image20', deviation, losses.tolist())
    save('train_image20', {
        **{f'sd0.{k}': v for k, v in initial.state_dict().items()}, **{f'in.{k}': v for k, v in data.items()},
        'losses': losses, **{f'final.{k}': v for k, v in model.state_dict().items()},
    }, {'config': config, 'seed': SEED, 'float32': deviation,
        'optimizer': {'name': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.999], 'eps': 1e-8},
        'loss': 'mean over all elements of w (D(y + s n; s) - y)^2, w = (s^2 + 0.25) / (0.5 s)^2, s = exp(1.2 r - 1.2)',
        'losses': 'losses[k] is before update k',
        'exclude': 'rows [C, 2C) (k) of qkv.bias and qkv_temb.*: gradient 0 in theory, rounding noise in practice'})


if __name__ == '__main__':
    torch.set_num_threads(1)
    check_goldens()
    for variant, variant_config in VARIANTS.items():
        make_variant(variant, variant_config)
    make_training()
