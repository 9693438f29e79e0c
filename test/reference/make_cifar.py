"""Makes test/fixtures/io/cifar_protocol<N>.pickle: a batch of CIFAR-10's Python version with two images, pickled by Python 3 and NumPy.

Byte (i, j) of "data" is (i + 7 j) % 256; the labels are 3 and 8. (The published files are of Python 2's cPickle, which the test writes itself.)
"""

import pickle
from pathlib import Path

import numpy as np

i, j = np.ogrid[:2, :3072]
data = ((i + 7 * j) % 256).astype(np.uint8)
for protocol in (2, 4):
    batch = {'batch_label': 'training batch 1 of 5', 'labels': [3, 8], 'data': data, 'filenames': ['a.png', 'b.png']}
    path = Path(__file__).parent.parent / 'fixtures' / 'io' / f'cifar_protocol{protocol}.pickle'
    path.write_bytes(pickle.dumps(batch, protocol))
