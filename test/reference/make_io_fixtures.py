"""Makes test/fixtures/io: files written by the original libraries (safetensors, NumPy), which the tests read back.

values.json lists what the float files hold, so that a test never compares our reader with itself.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file

from fixture import FIXTURES

OUT = FIXTURES / 'io'
OUT.mkdir(parents=True, exist_ok=True)

halves = [0.0, -0.0, 1.0, -2.5, 65504.0, 6.103515625e-05, 5.960464477539063e-08, float('inf'), 0.333251953125]
floats = np.array([[0.1, -1.5, 3.25e7], [1e-42, 2.0, -0.0]], dtype=np.float32)
doubles = np.array([0.1, 1 / 3, -1e300, 5e-324, 2.0])
longs = np.array([[-(2**62), -1], [0, 2**53 + 1]], dtype=np.int64)
ints = np.array([-(2**31), 7, 2**31 - 1], dtype=np.int32)
images = (np.arange(2 * 3 * 4 * 3) % 251).astype(np.uint8).reshape(2, 3, 4, 3)
labels = np.array([7, 999], dtype=np.int64)
bfloats = torch.tensor([1.0, -2.5, 3.0e38, 0.1], dtype=torch.bfloat16)

save_file(
    {
        'f32': torch.from_numpy(floats),
        'f16': torch.tensor(halves, dtype=torch.float16),
        'bf16': bfloats,
        'f64': torch.tensor([0.1, 1 / 3, -2.0], dtype=torch.float64),
        'i64': torch.from_numpy(longs),
        'i32': torch.from_numpy(ints),
        'u8': torch.from_numpy(images),
        'scalar': torch.tensor(0.5),
        'empty': torch.zeros(0, 4),
        'blocks.0.attn.qkv.weight': torch.arange(12.0).reshape(3, 4),
        'naïve "name"\n': torch.tensor([1.0]),
    },
    OUT / 'all.safetensors',
    metadata={'format': 'pt', 'json': json.dumps({'nested': ['ü', 1]})},
)
save_file({'mask': torch.tensor([True, False]), 'x': torch.tensor([1.0, 2.0])}, OUT / 'bool.safetensors')

np.save(OUT / 'f4.npy', floats)
np.save(OUT / 'f2.npy', np.array(halves, dtype=np.float16))
np.save(OUT / 'f8.npy', doubles)
np.save(OUT / 'i8.npy', longs)
np.save(OUT / 'i4.npy', ints)
np.save(OUT / 'u1.npy', images)
np.save(OUT / 'scalar.npy', np.float32(0.5))
np.save(OUT / 'empty.npy', np.zeros((0, 3), dtype=np.float32))
np.save(OUT / 'fortran.npy', np.asfortranarray(floats))
np.save(OUT / 'big_endian.npy', floats.astype('>f4'))
np.save(OUT / 'complex.npy', np.zeros(2, dtype=np.complex64))
with open(OUT / 'version2.npy', 'wb') as file:
    np.lib.format.write_array(file, floats, version=(2, 0))
np.savez(OUT / 'images.npz', images, labels)
np.savez_compressed(OUT / 'compressed.npz', mu=doubles, sigma=np.outer(doubles[:2], doubles[:2]))

values = {
    'halves': [repr(float(v)) for v in np.array(halves, dtype=np.float16)],
    'floats': [repr(float(v)) for v in floats.ravel()],
    'bfloats': [repr(v) for v in bfloats.tolist()],
    'doubles': [repr(float(v)) for v in doubles],
}
(OUT / 'values.json').write_text(json.dumps(values, indent=1) + '\n')
print(f'{len(list(OUT.iterdir()))} files in {OUT.name}')
