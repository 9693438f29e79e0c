"""Makes test/fixtures/augment.safetensors: each transformation of EDM's augmentation alone, and all of them, in PyTorch float64.

Written out step by step: reflection, zeros between pixels and the filter sym6, affine_grid and grid_sample, the filter again and every second
pixel. The whole is checked against NVlabs/edm's own output (goldens/edm_augment) first.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

torch.set_default_dtype(torch.float64)
FIXTURES = Path(__file__).parent.parent / 'fixtures'
SYM6 = torch.tensor([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip


def matrix(a, b, c, d, e, f):
    return torch.tensor([[a, b, c], [d, e, f], [0, 0, 1]], dtype=torch.float64)


def scale(x, y):
    return matrix(x, 0, 0, 0, y, 0)


def turn(angle):
    return matrix(math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0)


def move(x, y):
    return matrix(1, 0, x, 0, 1, y)


def filtered(x, taps, stride, pad):
    """Along both axes, every channel by itself."""
    c = x.shape[1]
    x = F.conv2d(x, taps.view(1, 1, 1, -1).repeat(c, 1, 1, 1), stride=(1, stride), padding=(0, pad), groups=c)
    return F.conv2d(x, taps.view(1, 1, -1, 1).repeat(c, 1, 1, 1), stride=(stride, 1), padding=(pad, 0), groups=c)


def augment(image, d):
    """One image [C, H, W]; d: xflip, yflip, scale, rotate, aniso, anisoAngle, translate, as the package names them."""
    c, h, w = image.shape
    x = image[None]
    if d['xflip']:
        x = x.flip(3)
    if d['yflip']:
        x = x.flip(2)
    s, a = 2 ** (0.2 * d['scale']), 2 ** (0.2 * d['aniso'])
    tx, ty = d['translate']
    g = scale(1 / s, 1 / s) @ turn(d['rotate']) @ turn(-d['anisoAngle']) @ scale(1 / a, a) @ turn(d['anisoAngle'])
    g = g @ move(-tx * w * 0.125, -ty * h * 0.125)
    x = F.pad(x, [w - 1, w - 1, h - 1, h - 1], mode='reflect')
    ph, pw = x.shape[2:]
    spread = torch.zeros(1, c, 2 * ph - 1, 2 * pw - 1)
    spread[:, :, ::2, ::2] = x
    x = filtered(spread, SYM6.flip(0), 1, 6)
    g = move(-0.5, -0.5) @ scale(2, 2) @ g @ scale(0.5, 0.5) @ move(0.5, 0.5)
    size = [1, c, (h + 6) * 2, (w + 6) * 2]
    g = scale(2 / x.shape[3], 2 / x.shape[2]) @ g @ scale(size[3] / 2, size[2] / 2)
    x = F.grid_sample(x, F.affine_grid(g[None, :2], size, align_corners=False), padding_mode='zeros', align_corners=False)
    return filtered(x, SYM6, 2, 5)[0, :, 3:-3, 3:-3]


def golden_draws(raw, tag, p):
    get = {name.split('.')[-1]: value.double().flatten() for name, value in raw.items() if name.startswith(f'{tag}.draw')}
    translate = raw[next(name for name in raw if name.startswith(f'{tag}.draw') and name.endswith('translate_w'))].double()
    for i in range(len(get['scale_w'])):
        on = lambda name: bool(get[name][i] < p)  # noqa: E731
        yield {
            'xflip': int(get['xflip_w'][i]) if get['xflip_u'][i] < 1e8 * p else 0,
            'yflip': int(get['yflip_w'][i]) if on('yflip_u') else 0,
            'scale': float(get['scale_w'][i]) if on('scale_u') else 0,
            'rotate': float((2 * get['rotate_w'][i] - 1) * math.pi) if on('rotate_u') else 0,
            'aniso': float(get['aniso_w'][i]) if on('aniso_u') else 0,
            'anisoAngle': float((2 * get['aniso_r'][i] - 1) * math.pi) if get['aniso_rotate_u'][i] < 0.5 else 0,
            'translate': [float(translate[k, i]) if on('translate_u') else 0 for k in (0, 1)],
        }


golden = load_file(FIXTURES / 'goldens' / 'edm_augment.safetensors')
for tag, p in [('a', 1.0), ('b', 1.0), ('c_p012', 0.12)]:
    for i, draw in enumerate(golden_draws(golden, tag, p)):
        error = (augment(golden[f'{tag}.images'][i].double(), draw) - golden[f'{tag}.output'][i]).abs().max()
        assert error < 2e-5, (tag, i, float(error))

none = {'xflip': 0, 'yflip': 0, 'scale': 0, 'rotate': 0, 'aniso': 0, 'anisoAngle': 0, 'translate': [0, 0]}
cases = {
    'nothing': {},
    'xflip': {'xflip': 1},
    'yflip': {'yflip': 1},
    'larger': {'scale': 1.3},
    'smaller': {'scale': -2.1},
    'rotate': {'rotate': 0.7},
    'aniso': {'aniso': 1.1},
    'aniso_turned': {'aniso': -0.9, 'anisoAngle': 2.0},
    'translate': {'translate': [0.8, -1.5]},
    'all': {'xflip': 1, 'yflip': 1, 'scale': 0.5, 'rotate': -2.2, 'aniso': 0.6, 'anisoAngle': 0.4, 'translate': [-1.1, 0.3]},
}
torch.manual_seed(5)
images = torch.rand(len(cases), 2, 12, 18, dtype=torch.float32) * 2 - 1
draws = [{**none, **case} for case in cases.values()]
output = torch.stack([augment(image.double(), draw) for image, draw in zip(images, draws)])
save_file(
    {'images': images, 'output': output.float().contiguous()},
    FIXTURES / 'augment.safetensors',
    metadata={'json': json.dumps({'names': list(cases), 'draws': draws})},
)
