"""Makes vae_tiny.safetensors: a small autoencoder, forward and every gradient, and tiled decoding."""

import json

import torch
from safetensors import safe_open

from fixture import FIXTURES, Rng, exact, save
from vae import Autoencoder, decode_tiled, kl

CONFIG = {
    'inChannels': 3,
    'outChannels': 3,
    'latentChannels': 2,
    'blockOutChannels': [8, 16],
    'layersPerBlock': 1,
    'normNumGroups': 4,
}
TILES = {'small': (4, 0.25), 'half': (6, 0.5), 'apart': (5, 0.0)}


def check_against_goldens():
    """The twin agrees with diffusers' own AutoencoderKL."""
    with safe_open(FIXTURES / 'goldens' / 'vae.safetensors', 'pt') as file:
        golden = {name: file.get_tensor(name).double() for name in file.keys()}
        config = json.loads(file.metadata()['json'])['config']
    model = Autoencoder(3, 3, 4, config['block_out_channels'], config['layers_per_block'], 32).double()
    model.load_state_dict({name[3:]: value for name, value in golden.items() if name.startswith('sd.')})
    with torch.no_grad():
        mean, logvar = model.encode(golden['in.image'])
        image = model.decode(golden['in.latent'])
    for name, value in {'mean': mean, 'logvar': logvar, 'image': image}.items():
        error = (value - golden[f'out.{name}']).abs().max().item()
        print(f'golden {name}: {error:.1e}')
        assert error < 1e-6


def results(model, x, noise, dout):
    """Reconstruction from mean + std noise; gradients of sum(reconstruction dout) + sum(kl)."""
    x = x.clone().requires_grad_()
    mean, logvar = model.encode(x)
    image = model.decode(mean + (logvar / 2).exp() * noise)
    divergence = kl(mean, logvar)
    model.zero_grad()
    ((image * dout).sum() + divergence.sum()).backward()
    out = {'out.mean': mean, 'out.logvar': logvar, 'out.image': image, 'out.kl': divergence, 'grad.x': x.grad}
    out.update({f'grad.{name}': p.grad for name, p in model.named_parameters()})
    return {name: value.detach().clone() for name, value in out.items()}


def relative(a, b):
    return ((a.double() - b).abs().max() / b.abs().max()).item()


check_against_goldens()
rng = Rng(91)
torch.manual_seed(0)
model = Autoencoder(**CONFIG).double()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if 'norm' in name:
            values = (1 if name.endswith('weight') else 0) + 0.2 * rng.normal(*parameter.shape)
        else:
            fan = parameter[0].numel() if parameter.ndim > 1 else 25
            values = rng.normal(*parameter.shape, scale=fan**-0.5)
        parameter.copy_(exact(values))
x, noise = rng.uniform(-1, 1, 2, 3, 8, 12), rng.normal(2, 2, 4, 6)
dout, latent = rng.normal(2, 3, 8, 12), rng.normal(1, 2, 11, 9)
tensors = {f'sd.{name}': value.clone() for name, value in model.state_dict().items()}
tensors.update({'in.x': x, 'in.noise': noise, 'in.dout': dout, 'in.latent': latent})
wide = results(model, x, noise, dout)
with torch.no_grad():
    for name, (size, overlap) in TILES.items():
        tensors[f'tiled.{name}'] = decode_tiled(model, latent, size, overlap)
narrow = results(model.float(), x.float(), noise.float(), dout.float())
errors = {name: relative(narrow[name], wide[name]) for name in wide if wide[name].abs().max() > 1e-9}
float32 = {
    'out': max(e for name, e in errors.items() if name.startswith('out')),
    'grad': max(e for name, e in errors.items() if name.startswith('grad') and 'to_k.bias' not in name),
}
save('vae_tiny', {**tensors, **wide}, {'config': CONFIG, 'tiles': TILES, 'seed': 91, 'float32': float32})
print(float32)
