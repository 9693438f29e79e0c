"""Makes test/fixtures/resize.json: what Pillow makes of pictures of many sizes, as SHA-256 of the pixels, and two small results in full.

A picture is pixel (y, x, c) = (seed + 37 x + 11 y + 71 c + (x y) % 97 + 200 [x > w / 2] [y < h / 3]) % 256, so that no picture is stored. The crop
'adm' is written out here as guided-diffusion and its followers define it.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

FILTERS = {'box': Image.Resampling.BOX, 'bicubic': Image.Resampling.BICUBIC, 'lanczos': Image.Resampling.LANCZOS}


def picture(width, height, channels, seed):
    y, x, c = np.ogrid[:height, :width, :channels]
    step = 200 * ((x > width / 2) & (y < height / 3))
    pixels = (seed + 37 * x + 11 * y + 71 * c + (x * y) % 97 + step) % 256
    return Image.fromarray(pixels.astype(np.uint8).squeeze())


def adm(image, size):
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def center(image, size, kind):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), kind)


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


cases = []
for seed, (width, height, channels) in enumerate(
    [(500, 375, 3), (375, 500, 3), (64, 64, 3), (129, 64, 3), (1024, 1024, 3), (40, 333, 1), (2, 3, 3), (1000, 257, 3), (33, 33, 1)]
):
    image = picture(width, height, channels, seed)
    base = {'width': width, 'height': height, 'channels': channels, 'seed': seed}
    for size in (64, 128, 31):
        cases.append({**base, 'size': size, 'crop': 'adm', 'resampling': 'bicubic', 'sha256': digest(adm(image, size))})
        for name, kind in FILTERS.items():
            scaled = image.resize((size, size), kind)
            cases.append({**base, 'size': size, 'crop': 'scale', 'resampling': name, 'sha256': digest(scaled)})
            cropped = center(image, size, kind)
            cases.append({**base, 'size': size, 'crop': 'center', 'resampling': name, 'sha256': digest(cropped)})
full = [
    {'width': 37, 'height': 29, 'channels': 3, 'seed': 4, 'size': 6, 'crop': 'adm', 'resampling': 'bicubic'},
    {'width': 37, 'height': 29, 'channels': 3, 'seed': 4, 'size': 6, 'crop': 'scale', 'resampling': 'lanczos'},
]
for case in full:
    image = picture(case['width'], case['height'], 3, case['seed'])
    result = adm(image, 6) if case['crop'] == 'adm' else image.resize((6, 6), FILTERS['lanczos'])
    case['pixels'] = np.asarray(result).flatten().tolist()
path = Path(__file__).parent.parent / 'fixtures' / 'resize.json'
path.write_text(json.dumps({'pillow': PIL.__version__, 'full': full, 'cases': cases}) + '\n')
