"""Makes test/fixtures/latent_masked_<diffit|dit>.safetensors: MDT's two passes through both latent models.

Each holds sd.<parameter>, in.{x,t,y,kept}, in.dout (of the masked pass), in.dout_full, out (masked), out_full, and the
gradients of sum(out * dout) + sum(out_full * dout_full): grad.<parameter>, grad.x. `float32` in the metadata is the
deviation of the same code run in float32. Before anything is written, the twin is checked against the goldens.
"""

import copy

import torch

from fixture import Rng, save
from latent import LatentTransformer
from make_image_diffit import read, to_float32, worst

SEED = 2303
CONFIG = {'inputSize': 8, 'patchSize': 2, 'inChannels': 4, 'hiddenSize': 32, 'depth': 3, 'numHeads': 4, 'mlpRatio': 2,
          'numClasses': 5, 'classDropoutProb': 0.1, 'learnSigma': True, 'maskRatio': 0.3, 'decodeLayers': 1}
GOLDEN = {'inputSize': 8, 'patchSize': 2, 'inChannels': 4, 'hiddenSize': 64, 'numHeads': 4, 'mlpRatio': 4,
          'numClasses': 10}


def check_golden(name, tmsa, depth, t, out):
    golden = read(f'goldens/{name}.safetensors')
    model = LatentTransformer(tmsa, **GOLDEN, depth=depth).double()
    model.load_state_dict({k[3:]: v for k, v in golden.items() if k.startswith('sd.') and not k.endswith('_index')})
    error = worst([model(golden['in.x'], golden[t], golden['in.y'])], [golden[out]])
    assert error < 2e-6, f'{name}: the twin differs by {error}'
    print(f'golden {name}: the twin agrees to {error:.1e}')


def initialise(model, rng):
    """Random weights under which every path matters. Exact in float32."""
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            scale = 1 if 'table' in name else p[0].numel() ** -0.5 if p.dim() in (2, 4) else 0.3
            p.copy_(rng.normal(*p.shape, scale=scale))
    return model


def run(model, inputs):
    x = inputs['x'].clone().requires_grad_()
    model.zero_grad()
    out = model(x, inputs['t'], inputs['y'], inputs['kept'])
    full = model(x, inputs['t'], inputs['y'])
    ((out * inputs['dout']).sum() + (full * inputs['dout_full']).sum()).backward()
    return [out.detach(), full.detach()], {**{k: p.grad.clone() for k, p in model.named_parameters()}, 'x': x.grad}


def make(name, tmsa):
    rng = Rng.named(SEED, name)
    model = initialise(LatentTransformer(tmsa, **CONFIG).double(), rng)
    batch, size, channels, n = 3, CONFIG['inputSize'], CONFIG['inChannels'], 16
    kept = torch.stack([torch.from_numpy(rng.rng.permutation(n)[: int(n * (1 - CONFIG['maskRatio']))])
                        for _ in range(batch)])
    inputs = {'x': rng.normal(batch, channels, size, size), 't': rng.uniform(0, 999, batch),
              'y': rng.integers(CONFIG['numClasses'] + 1, batch), 'kept': kept,
              'dout': rng.normal(batch, 2 * channels, size, size), 'dout_full': rng.normal(batch, 2 * channels, size, size)}
    outs, grads = run(model, inputs)
    outs32, grads32 = run(copy.deepcopy(model).float(), to_float32(inputs))
    deviation = {'out': worst(outs32, outs), 'grad': worst(grads32.values(), grads.values())}
    print(name, deviation, 'smallest gradient', min((float(g.abs().max()), k) for k, g in grads.items()))
    save(f'latent_masked_{name}', {
        **{f'sd.{k}': v for k, v in model.state_dict().items()}, **{f'in.{k}': v for k, v in inputs.items()},
        'out': outs[0], 'out_full': outs[1], **{f'grad.{k}': v for k, v in grads.items()},
    }, {'config': CONFIG, 'seed': SEED, 'float32': deviation})


if __name__ == '__main__':
    torch.set_num_threads(1)
    check_golden('latent_model', True, 3, 'in.t_int', 'out.int')
    check_golden('latent_model', True, 3, 'in.t_frac', 'out.frac')
    check_golden('dit', False, 2, 'in.t', 'out')
    make('diffit', True)
    make('dit', False)
