"""Makes test/fixtures/io/meta.mat: a stand-in for the meta.mat of ILSVRC2012_devkit_t12, written by SciPy.

It has 1000 classes and 4 groups. Class k (ILSVRC2012_ID k + 1) is n followed by 8 digits of 1000000 + (7 k mod 1000) 37, so that the order of the
numbers is not that of the IDs.
"""

from pathlib import Path

import numpy as np
from scipy.io import savemat

count = 1004
kinds = [('ILSVRC2012_ID', object), ('WNID', object), ('words', object), ('num_children', object), ('children', object)]
synsets = np.zeros((count, 1), dtype=kinds)
for k in range(count):
    word = f'n{1000000 + (7 * k % 1000) * 37:08d}' if k < 1000 else f'n9000000{k - 1000}'
    children = np.zeros((1, 0)) if k < 1000 else np.array([[1.0, 2.0]])
    synsets[k, 0] = (np.array([[k + 1]], dtype=np.uint16 if k > 254 else np.uint8), word, f'class {k}', 0.0, children)
path = Path(__file__).parent.parent / 'fixtures' / 'io' / 'meta.mat'
savemat(path, {'other': np.eye(3), 'synsets': synsets}, do_compression=True)
