"""Blocks, models, sampling and training steps of the same DiffiT in PyTorch: test/reference's twins, with their attention through
scaled_dot_product_attention, run eagerly and through torch.compile.
"""

import math
import os
import sys
import time

import torch
import torch.nn.functional as F

from attention import position_index
from common import DTYPES, NotMeasured

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'test', 'reference'))
import image_diffit  # noqa: E402
import latent  # noqa: E402

COMPILED = {'compile': {}, 'compile reduce-overhead': {'mode': 'reduce-overhead'}, 'compile max-autotune': {'mode': 'max-autotune'}}
GUIDANCE, POWER = 4.4, 4


def fused_attention(self, x, token, kept=None):
    """latent.Attention.forward with the softmax and both products in one call."""
    b, n, c = x.shape
    qkv = self.qkv(x) + self.qkv_temb(token)[:, None]
    mask = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None].to(qkv.dtype)
    q, k, v = qkv.reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return self.proj(y.transpose(1, 2).reshape(b, n, c))


INDICES = {}


def fused_window_attention(self, x, token):
    """image_diffit.Attention.forward in the same way, windows of a [B, H, W, C] map."""
    b, height, width, c = x.shape
    w, d = self.window, c // self.heads
    qkv = self.qkv(x) + self.qkv_temb(token)[:, None, None]
    if w not in INDICES:
        INDICES[w] = position_index(w).to(x.device)
    mask = self.relative_position_bias_table[INDICES[w]].permute(2, 0, 1)[None].to(qkv.dtype)
    q, k, v = qkv.view(b, height // w, w, width // w, w, 3, self.heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(
        3, -1, self.heads, w * w, d).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y.view(b, height // w, width // w, self.heads, w, w, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, height, width, c)
    return self.proj(y)


def network(spec, device):
    config = dict(spec['config'])
    if spec['sizes']['kind'] == 'ImageDiffiT':
        for name in ('dropout', 'classDropoutProb'):
            config.pop(name, None)
        with torch.device(device):  # plain attributes too: tables of positions
            model = image_diffit.ImageDiffiT(**config)
        shape = (config['inChannels'], config['imgResolution'], config['imgResolution'])
    else:
        config = {'patchSize': 2, 'inChannels': 4, 'mlpRatio': 4, 'numClasses': 1000, **config}
        with torch.device(device):
            model = latent.LatentTransformer(True, **config)
        shape = (config['inChannels'], config['inputSize'], config['inputSize'])
    with torch.no_grad():
        for parameter in model.parameters():  # no zeros: time on real numbers
            if parameter.dim() < 2 or not parameter.any():
                parameter.normal_(0, 0.02)
    return model.to(device), shape, config.get('numClasses', 0)


def labels_for(batch, classes, device):
    return torch.arange(batch, device=device) % classes if classes else None


def ways(timer, max_autotune):
    """Names of the ways to run a network; compiling needs Triton, which comes with CUDA builds."""
    compiled = ['compile reduce-overhead', 'compile'] + (['compile max-autotune'] if max_autotune else [])
    return ['eager'] + compiled


def prepared(way, model, device):
    if way == 'eager':
        return model
    if not device.startswith('cuda'):
        raise NotMeasured('torch.compile is measured on CUDA only: compiling needs Triton.')
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, **COMPILED[way])


def time_block(report, timer, spec, device, dtype, quick, max_autotune):
    side, dim, heads, batch = (spec['sizes'][name] for name in ('side', 'dim', 'heads', 'batch'))
    train = spec['sizes']['pass'] == 'train'
    for way in ways(timer, max_autotune):
        def work():
            with torch.device(device):
                block = latent.Block(dim, heads, side, 4, True)
            run = prepared(way, block, device)
            x = torch.randn(batch, side * side, dim, device=device, requires_grad=train)
            token = torch.randn(batch, dim, device=device, requires_grad=train)
            dy = torch.randn_like(x)
            def step(_):
                with torch.autocast(device.split(':')[0], DTYPES[dtype], enabled=dtype != 'f32'):
                    y = run(x, token)
                if train:
                    block.zero_grad(set_to_none=True)
                    x.grad = token.grad = None
                    y.backward(dy.to(y.dtype))
            with torch.set_grad_enabled(train):
                return timer.measure(step, graph=way == 'eager' and not train)
        report.add(spec, way, work)


def time_model(report, timer, spec, device, dtype, quick, max_autotune):
    for way in ways(timer, max_autotune):
        def work():
            model, shape, classes = network(spec, device)
            batch = spec['sizes']['batch']
            run, cast = inference(way, model, device, dtype)
            x, t = torch.randn(batch, *shape, device=device).to(cast), torch.full((batch,), 0.5, device=device)
            y = labels_for(batch, classes, device)
            with torch.no_grad():
                return timer.measure(lambda _: run(x, t, y), graph=way == 'eager')
        report.add(spec, way, work)


def inference(way, model, device, dtype):
    """The whole model in the low precision, weights too."""
    model = model.to(DTYPES[dtype]).eval()
    if isinstance(model, image_diffit.ImageDiffiT):
        model = model.to(memory_format=torch.channels_last)
    run = prepared(way, model, device)
    if isinstance(model, image_diffit.ImageDiffiT):
        return (lambda x, c, y: run(x, c.to(DTYPES[dtype]), y)), DTYPES[dtype]
    return run, DTYPES[dtype]


class Gaussian:
    """250 of 1,000 steps, linear betas, learned variance, as the arithmetic of a step needs them."""

    def __init__(self, steps=250, trained=1000):
        product, products = 1.0, []
        for i in range(trained):
            product *= 1 - (1e-4 + (0.02 - 1e-4) * i / (trained - 1))
            products.append(product)
        self.timesteps = [round(i * (trained - 1) / (steps - 1)) for i in range(steps)]
        self.kept = [products[t] for t in self.timesteps]
        self.before = [1.0] + self.kept[:-1]
        self.betas = [1 - kept / before for kept, before in zip(self.kept, self.before)]

    def step(self, output, x, i, noise):
        """x at step i, the network's output for x under both labels [2B, 2C, ...] -> x at the step before."""
        channels, t = x.shape[1], self.timesteps[i]
        conditional, without = output.float().chunk(2)
        scale = 1 + (GUIDANCE - 1) * (1 - math.cos(math.pi * (1 - t / 1000) ** POWER)) / 2
        eps = torch.cat([without[:, :3] + scale * (conditional - without)[:, :3], conditional[:, 3:channels]], 1)
        a, before, beta = self.kept[i], self.before[i], self.betas[i]
        start = x / math.sqrt(a) - eps * math.sqrt(1 / a - 1)
        mean = start * (beta * math.sqrt(before) / (1 - a)) + x * ((1 - before) * math.sqrt(1 - beta) / (1 - a))
        low = math.log(max(beta * (1 - before) / (1 - a), 1e-20)) if i else math.log(beta)
        share = (conditional[:, channels:] + 1) / 2
        return mean + noise * torch.exp(0.5 * (share * math.log(beta) + (1 - share) * low))


def time_sampler(report, timer, spec, device, dtype, quick, max_autotune):
    free = 'arithmetic' in spec['sizes']['pass']
    for way in ['eager'] if free else ways(timer, max_autotune):
        def work():
            model, shape, classes = network(spec, device)
            batch = spec['sizes']['batch']
            run, cast = inference(way, model, device, dtype)
            step = edm_step if spec['sizes']['kind'] == 'ImageDiffiT' else ddpm_step
            with torch.no_grad():
                return timer.measure(step(run, (batch, *shape), classes, device, cast, free))
        report.add(spec, way, work)


def ddpm_step(run, shape, classes, device, cast, free):
    process, batch = Gaussian(), shape[0]
    x = torch.randn(shape, device=device)
    y = torch.cat([labels_for(batch, classes, device), torch.full((batch,), classes, device=device)])
    still = torch.randn(2 * batch, 2 * shape[1], *shape[2:], device=device)
    state = {'x': x, 'i': 249}
    def step(_):
        i, x = state['i'], state['x']
        t = torch.full((2 * batch,), float(process.timesteps[i]), device=device)
        output = still if free else run(torch.cat([x, x]).to(cast), t, y)
        state['x'] = process.step(output, x, i, torch.randn_like(x))
        state['i'] = i - 1 if i > 1 else 249
    return step


def edm_step(run, shape, classes, device, cast, free):
    """Heun's step at one noise level, two evaluations of the network."""
    batch = shape[0]
    y, still = labels_for(batch, classes, device), torch.randn(shape, device=device)
    def denoise(x, sigma):
        total = sigma**2 + 0.25
        c = torch.full((batch,), math.log(sigma) / 4, device=device)
        f = still if free else run((x / math.sqrt(total)).to(cast), c, y).float()
        return x * (0.25 / total) + f * (sigma * 0.5 / math.sqrt(total))
    state = {'x': 80 * torch.randn(shape, device=device)}
    def step(_):
        x, now, after = state['x'], 1.0, 0.98
        d = (x - denoise(x, now)) / now
        euler = x + (after - now) * d
        state['x'] = x + (after - now) * (d + (euler - denoise(euler, after)) / after) / 2
    return step


def gaussian_loss(run, tables, x0, y):
    """Noise prediction and the variational term of the learned variance (no decoder term); tables [4, T] on the device."""
    batch, channels = x0.shape[:2]
    i = torch.randint(1, tables.shape[1], (batch,), device=x0.device)
    a, before, beta, steps = tables[:, i, None, None, None]
    noise = torch.randn_like(x0)
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    eps, spread = run(x, steps.flatten(), y).float().split(channels, 1)
    start = lambda e: x / a.sqrt() - e * (1 / a - 1).sqrt()
    mean = lambda s: s * (beta * before.sqrt() / (1 - a)) + x * ((1 - before) * (1 - beta).sqrt() / (1 - a))
    low = (beta * (1 - before) / (1 - a)).clamp_min(1e-20).log()
    log_variance = (spread + 1) / 2 * beta.log() + (1 - spread) / 2 * low
    error = (mean(x0) - mean(start(eps.detach()))) ** 2
    kl = 0.5 * (-1 + log_variance - low + torch.exp(low - log_variance) + error * torch.exp(-log_variance))
    return ((noise - eps) ** 2).mean() + kl.mean() / math.log(2)


def time_train(report, timer, spec, device, dtype, quick, max_autotune):
    for way in ['eager', 'compile']:
        def work():
            model, shape, classes = network(spec, device)
            batch = spec['sizes']['batch']
            images, y = torch.randn(batch, *shape, device=device), labels_for(batch, classes, device)
            run = prepared(way, model, device)
            parameters = list(model.parameters())
            averages = [p.detach().clone() for p in parameters]
            adam = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0, fused=device.startswith('cuda'))
            process = Gaussian(1000)
            tables = torch.tensor([process.kept, process.before, process.betas, process.timesteps], device=device)
            def step(_):
                with torch.autocast(device.split(':')[0], DTYPES[dtype], enabled=dtype != 'f32'):
                    if spec['sizes']['kind'] == 'ImageDiffiT':
                        loss = image_diffit.edm_loss(run, images, torch.randn(batch, device=device), torch.randn_like(images), y)
                    else:
                        loss = gaussian_loss(run, tables, images, y)
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
                with torch.no_grad():
                    torch._foreach_lerp_(averages, parameters, 1e-3)
            return timer.measure(step)
        report.add(spec, way, work)


latent.Attention.forward = fused_attention
image_diffit.Attention.forward = fused_window_attention
