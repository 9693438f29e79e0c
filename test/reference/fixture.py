"""What the fixture scripts share: seeded float32 inputs computed on in float64, and one way to save."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parent.parent / 'fixtures'


class Rng:
    """Random float64 tensors whose values are exact in float32, so float32 code starts from the same numbers."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape, scale=1.0):
        return exact(self.rng.standard_normal(shape) * scale)

    def uniform(self, low, high, *shape):
        return exact(self.rng.uniform(low, high, shape))

    def integers(self, high, *shape):
        return torch.from_numpy(self.rng.integers(0, high, shape))

    @staticmethod
    def named(seed, name):
        """A generator of its own per case name: adding a case leaves the others unchanged."""
        return Rng([seed, zlib.crc32(name.encode())])


def exact(values):
    """float64 tensor with the values rounded to float32."""
    return torch.as_tensor(np.asarray(values, dtype=np.float32)).double()


def save(name, tensors, meta):
    """Writes test/fixtures/<name>.safetensors: floats as float32, integers as they are, `meta` as the key 'json'."""
    stored = {}
    for key, value in tensors.items():
        value = value.detach()
        stored[key] = (value.float() if value.is_floating_point() else value).contiguous().clone()
    meta = {**meta, 'torch': torch.__version__}
    path = FIXTURES / f'{name}.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path, metadata={'json': json.dumps(meta)})
    path.chmod(0o644)
    print(f'{path.name}: {len(stored)} tensors, {path.stat().st_size / 1e3:.0f} kB')
