"""Makes test/fixtures/samplers.safetensors: noise schedules and whole sampling loops with guidance, in plain NumPy float64.

The network is a toy with labels: eps = (0.9 + 0.03 y) x + 0.3 sin((1 + y) t / 1000), spread = tanh(x) - 0.1 y; label 3 is
the null class. Tables are stored as float64, images as float32.
"""

import json

import numpy as np
from safetensors.numpy import save_file

NULL_CLASS = 3
SHAPE = (2, 4, 4, 4)
LABELS = np.array([0, 2])
T = 1000


def linear(steps):
    return np.linspace(0.1 / steps, 20 / steps, steps)


def cosine(steps):
    bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def kept(steps, respacing):
    """Timesteps that a respaced process keeps; Python's round() is to even, as in the original."""
    if respacing.startswith('ddim'):
        count = int(respacing[4:])
        stride = next(k for k in range(1, steps) if len(range(0, steps, k)) == count)
        return list(range(0, steps, stride))
    counts = [int(n) for n in respacing.split(',')]
    sizes = [steps // len(counts) + (j < steps % len(counts)) for j in range(len(counts))]
    result = []
    for j, (count, size) in enumerate(zip(counts, sizes)):
        place, stride = 0.0, (size - 1) / (count - 1) if count > 1 else 1
        for _ in range(count):
            result.append(sum(sizes[:j]) + round(place))
            place += stride
    return result


def network(x, t, y):
    y = y.reshape(-1, 1, 1, 1)
    return (0.9 + 0.03 * y) * x + 0.3 * np.sin((1 + y) * t / T), np.tanh(x) - 0.1 * y


def guided(x, t, cfg, power, channels, interval):
    """eps and spread: the first `channels` of eps guided, at timesteps inside the interval."""
    eps, spread = network(x, t, LABELS)
    if cfg == 1 or not interval[0] <= t <= interval[1]:
        return eps, spread
    scale = cfg if power is None else 1 + (cfg - 1) * (1 - np.cos(np.pi * (1 - t / T) ** power)) / 2
    null = network(x, t, np.full(2, NULL_CLASS))[0]
    eps[:, :channels] = (null + scale * (eps - null))[:, :channels]
    return eps, spread


def loop(rng, kind, respacing, schedule='linear', clip=False, eta=0.0, learn_sigma=True, cfg=1, power=None, channels=3, interval=(0, T)):
    """One sampling loop; everything it needs and the states after each step."""
    times = kept(T, respacing)
    bar = np.cumprod(1 - {'linear': linear, 'cosine': cosine}[schedule](T))[times]
    before = np.append(1.0, bar[:-1])
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    init, noises = normal(*SHAPE), normal(len(times), *SHAPE)
    x, last, samples, predictions = init, None, [], []
    for k, i in enumerate(reversed(range(len(times)))):
        eps, spread = guided(x, times[i], cfg, power, channels, interval)
        x0 = (x - np.sqrt(1 - bar[i]) * eps) / np.sqrt(bar[i])
        if clip:
            x0 = np.clip(x0, -1, 1)
        beta = 1 - bar[i] / before[i]
        if kind == 'ddpm':
            low = lambda j: (1 - bar[j] / before[j]) * (1 - before[j]) / (1 - bar[j])
            floor = low(max(i, 1))
            log_variance = (1 + spread) / 2 * np.log(beta) + (1 - spread) / 2 * np.log(floor)
            if not learn_sigma:
                log_variance = np.log(beta if i > 0 else floor)
            mean = np.sqrt(before[i]) * beta / (1 - bar[i]) * x0 + np.sqrt(1 - beta) * (1 - before[i]) / (1 - bar[i]) * x
            x = mean + (i > 0) * np.exp(log_variance / 2) * noises[k]
        elif kind == 'ddim':
            direction = (x - np.sqrt(bar[i]) * x0) / np.sqrt(1 - bar[i])
            sigma = eta * np.sqrt((1 - before[i]) / (1 - bar[i]) * (1 - bar[i] / before[i]))
            x = np.sqrt(before[i]) * x0 + np.sqrt(1 - before[i] - sigma**2) * direction + (i > 0) * sigma * noises[k]
        else:
            # Lu et al., Algorithm 2: first order where there is no earlier prediction, into timestep 0, and to the clean image.
            half_snr = lambda j: np.log(np.sqrt(bar[j]) / np.sqrt(1 - bar[j]))
            if i == 0:
                x = x0
            else:
                h = half_snr(i - 1) - half_snr(i)
                d = x0
                if last is not None and i > 1:
                    r = (half_snr(i) - half_snr(i + 1)) / h
                    d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last
                x = np.sqrt(1 - bar[i - 1]) / np.sqrt(1 - bar[i]) * x - np.sqrt(bar[i - 1]) * (np.exp(-h) - 1) * d
        last = x0
        samples.append(x)
        predictions.append(x0)
    return {'init': init, 'noises': noises, 'samples': np.stack(samples), 'denoised': np.stack(predictions)}


RESPACINGS = [(1000, r) for r in ('250', '7', '10,15,20', 'ddim50', '1,500', '100,0,3', '333,1,333', '2,2,2,2,2,2,2')]
RESPACINGS += [(4000, '100,50'), (37, '5,4,3,2'), (37, 'ddim19'), (300, '10,15,20'), (400, '201'), (4000, '128,64,32,31')]
LOOPS = {
    'dpm': dict(kind='dpm', respacing='10'),
    'dpm_cosine_guided': dict(kind='dpm', respacing='ddim20', schedule='cosine', clip=True, cfg=1.5, channels=4),
    'ddpm_guided': dict(kind='ddpm', respacing='12', cfg=4.4, power=4),
    'ddpm_interval': dict(kind='ddpm', respacing='12', cfg=2.5, interval=(200, 700)),
    'ddpm_fixed': dict(kind='ddpm', respacing='10,5', learn_sigma=False, clip=True),
    'ddim_guided': dict(kind='ddim', respacing='ddim10', schedule='cosine', eta=0.5, clip=True, cfg=3, channels=2),
}

if __name__ == '__main__':
    tables = {f'respacing.{steps}:{r}': np.array(kept(steps, r)) for steps, r in RESPACINGS}
    for steps in (1000, 50):
        tables[f'linear.{steps}'], tables[f'cosine.{steps}'] = linear(steps), cosine(steps)
    bar = np.cumprod(1 - linear(T))
    snr = bar / (1 - bar)
    tables['min_snr_5'] = np.minimum(snr, 5) / snr
    for seed, (name, options) in enumerate(LOOPS.items()):
        result = loop(np.random.default_rng([21, seed]), **options)
        tables |= {f'{name}.{key}': value.astype(np.float32) for key, value in result.items()}
    meta = {'json': json.dumps({'labels': LABELS.tolist(), 'nullClass': NULL_CLASS, 'loops': LOOPS})}
    save_file(tables, '../fixtures/samplers.safetensors', metadata=meta)
