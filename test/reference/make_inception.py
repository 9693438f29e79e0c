"""inception.safetensors: torch-fidelity's and pytorch-fid's own InceptionV3 on weights and images that both sides make from a formula.

pip install torchvision torch-fidelity pytorch-fid
"""

import tempfile

import numpy as np
import pytorch_fid.inception
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fixture import save

torch.set_grad_enabled(False)


def hashed(seed, count):
    """float64 numbers of [-1, 1), exact in float32: a 32-bit hash of seed and index."""
    u = (np.arange(count, dtype=np.uint64) * 1664525 + seed * 1013904223 + 12345) & 0xFFFFFFFF
    for _ in range(2):
        u = ((u ^ (u >> np.uint64(16))) * 0x45D9F3B) & 0xFFFFFFFF
    u ^= u >> np.uint64(16)
    return (u >> np.uint64(8)).astype(np.float64) * 2.0**-23 - 1


def value(seed, name, shape):
    x = hashed(seed, int(np.prod(shape)))
    if name.endswith('running_var'):
        x = 1 + 0.5 * x
    elif name.endswith('bn.weight'):
        x = 1 + 0.25 * x
    elif len(shape) == 1:
        x = 0.125 * x
    else:
        x = x * np.sqrt(6 / np.prod(shape[1:]))
    return torch.from_numpy(x.reshape(shape).astype(np.float32))


def images(seed, count, height, width):
    """uint8 [N, H, W, 3]: noise on waves, so that resizing matters and images differ."""
    n, y, x, c = np.meshgrid(*(np.arange(s) for s in (count, height, width, 3)), indexing='ij')
    waves = np.floor(80 * np.sin((n + 1) * (y + 1) / (7 + c)) + 80 * np.cos((n + 2) * (x + 1) / 11))
    noise = np.floor(40 * hashed(seed, waves.size)).reshape(waves.shape)
    return torch.from_numpy(np.clip(128 + waves + noise, 0, 255).astype(np.uint8))


class Skeleton(FeatureExtractorInceptionV3):
    """Only to learn the names and shapes, without weights to load."""

    def load_state_dict(self, *_, **__):
        pass


def main():
    with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        torch.save({}, file.name)
        shapes = {k: tuple(v.shape) for k, v in Skeleton('x', ['2048'], file.name).state_dict().items()}
        names = sorted(k for k in shapes if not k.endswith('num_batches_tracked'))
        state = {name: value(i, name, shapes[name]) for i, name in enumerate(names)}
        counters = {k: torch.tensor(0) for k in shapes if k.endswith('num_batches_tracked')}
        torch.save({**state, **counters}, file.name)
        fidelity = FeatureExtractorInceptionV3(
            'x', ['2048', 'logits_unbiased'], file.name, feature_extractor_internal_dtype='float64'
        )
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: {**state, **counters}
    fid = pytorch_fid.inception.InceptionV3().eval().double()
    spatial = []
    fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: spatial.append(out))

    tensors = {}
    sets = {'small': (1, 3, 32, 40), 'same': (2, 1, 299, 299), 'large': (3, 2, 330, 301)}
    for name, of in sets.items():
        x = images(*of).permute(0, 3, 1, 2).contiguous()
        features, logits = fidelity(x)
        tensors[f'{name}.features'] = features
        tensors[f'{name}.logits'] = logits
        tensors[f'{name}.spatial'] = spatial.pop()[:, :7].permute(0, 2, 3, 1).reshape(len(x), -1)
        tensors[f'{name}.pytorch'] = fid(x.double() / 255)[0].flatten(1)
    compared = {'a': (4, 10, 32, 32), 'b': (5, 12, 32, 32)}
    moments, centred = {}, {}
    for name, of in compared.items():
        features = fidelity(images(*of).permute(0, 3, 1, 2).contiguous())[0].double().numpy()
        moments[name] = (features.mean(0), np.cov(features, rowvar=False))
        centred[name] = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    distance = calculate_frechet_distance(*moments['a'], *moments['b'])
    # Covariances of 10 and 12 images have no full rank, and sqrtm loses digits. Exactly: tr sqrt(A B) = |X_a X_b^T|_*.
    (ma, sa), (mb, sb) = moments['a'], moments['b']
    trace = np.linalg.svd(centred['a'] @ centred['b'].T, compute_uv=False).sum()
    exact = ((ma - mb) ** 2).sum() + np.trace(sa) + np.trace(sb) - 2 * trace
    meta = {'sets': sets, 'compared': compared, 'fid': float(distance), 'fid_exact': float(exact), 'names': names}
    meta['shapes'] = [list(shapes[name]) for name in names]
    save('inception', tensors, meta)
    print(distance, exact, {k: float(v.abs().max()) for k, v in tensors.items()})


main()
