/**
 * EDM's augmentation against NVlabs/edm's own (goldens/edm_augment), and its parts against PyTorch (augment.safetensors); draws that depend on
 * the sample alone; options.
 */
import t from 'tap';
import { setNumThreads } from '../../lib/device.js';
import { type AugmentDraw, Augmenter } from '../../lib/diffusion/index.js';
import { randn } from '../../lib/ops/random.js';
import { scope } from '../../lib/scope.js';
import { tensor } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, loadFixture, toTensor, withoutLeaks } from '../helpers.js';

const golden = loadFixture('goldens/edm_augment.safetensors');

/** The golden's raw draws as ours: what its procedure leaves of them. */
function drawsOf(tag: string, p: number): AugmentDraw[] {
  const raw = (name: string): number[] => {
    const found = golden.names(`${tag}.draw`).find((full) => full.endsWith(`.${name}`));
    return Array.from(golden.tensor(found as string).data as ArrayLike<number | bigint>, Number);
  };
  const chosen = (name: string, share = 1): boolean[] => raw(name).map((u) => u < share * p);
  const [xflip, yflip] = [raw('xflip_w'), raw('yflip_w')];
  const [flipsX, flipsY] = [chosen('xflip_u', 1e8), chosen('yflip_u')];
  const [scale, scales] = [raw('scale_w'), chosen('scale_u')];
  const [rotate, rotates] = [raw('rotate_w'), chosen('rotate_u')];
  const [aniso, angle, stretches] = [raw('aniso_w'), raw('aniso_r'), chosen('aniso_u')];
  const turned = raw('aniso_rotate_u').map((u) => u < 0.5);
  const [translate, moves] = [raw('translate_w'), chosen('translate_u')];
  const n = scale.length;
  return Array.from({ length: n }, (_, i) => ({
    xflip: flipsX[i] ? xflip[i] : 0,
    yflip: flipsY[i] ? yflip[i] : 0,
    scale: scales[i] ? scale[i] : 0,
    rotate: rotates[i] ? (2 * rotate[i] - 1) * Math.PI : 0,
    aniso: stretches[i] ? aniso[i] : 0,
    anisoAngle: turned[i] ? (2 * angle[i] - 1) * Math.PI : 0,
    translate: moves[i] ? [translate[i], translate[n + i]] : [0, 0],
  }));
}

t.test('images and labels are NVlabs/edm’s, given its draws', async (t) => {
  for (const { tag, p } of golden.json.cases) {
    using augmenter = new Augmenter({ p });
    const { images, labels } = augmenter.apply(toTensor(golden.tensor(`${tag}.images`)), drawsOf(tag, p));
    assertClose(t, (await images.data()) as Float32Array, golden.f32(`${tag}.output`), 1e-5, `${tag} images`);
    assertClose(t, (await labels.data()) as Float32Array, golden.f32(`${tag}.labels`), 2e-7, `${tag} labels`);
  }
});

t.test('each transformation alone, and all of them, on images that are not square', async (t) => {
  const fixture = loadFixture('augment.safetensors');
  const { names, draws } = fixture.json as { names: string[]; draws: AugmentDraw[] };
  const expected = fixture.f32('output');
  await forEachDevice(t, async (t, device) => {
    using augmenter = new Augmenter({ p: 0.5 });
    const inputs = toTensor(fixture.tensor('images'), { device });
    const together = (await augmenter.apply(inputs, draws).images.data()) as Float32Array;
    const size = expected.length / names.length;
    for (const [i, name] of names.entries()) {
      const { images, labels } = augmenter.apply(inputs.slice(0, i, i + 1), [draws[i]]);
      const alone = (await images.data()) as Float32Array;
      assertClose(t, alone, expected.subarray(i * size, (i + 1) * size), 5e-6, name);
      t.same(alone, together.subarray(i * size, (i + 1) * size), `${name}: the same bits in a batch`);
      const told = (await labels.data()) as Float32Array;
      t.equal(told.length, 9);
      t.equal(
        told.every((x) => x === 0),
        name === 'nothing',
        `${name}: the labels tell`,
      );
    }
  });
});

t.test('a draw depends on seed, stream and sample alone, and takes what p says', async (t) => {
  const augmenter = new Augmenter({ p: 0.12 });
  const key = { seed: 3, stream: 2 ** 33 + 5 };
  const all = augmenter.draw(key, 2000);
  t.same(augmenter.draw({ ...key, firstSample: 1234 }, 3), all.slice(1234, 1237));
  t.notSame(augmenter.draw({ ...key, stream: 1 }, 1), all.slice(0, 1));
  t.notSame(augmenter.draw({ ...key, seed: 4 }, 1), all.slice(0, 1));
  const share = (of: (draw: AugmentDraw) => boolean): number => all.filter(of).length / all.length;
  const near = (actual: number, expected: number, name: string): void => {
    const deviation = Math.sqrt((expected * (1 - expected)) / all.length);
    t.ok(Math.abs(actual - expected) < 4 * deviation, `${name} ${actual}`);
  };
  near(
    share(({ xflip }) => xflip === 1),
    0.5,
    'xflip',
  );
  near(
    share(({ yflip }) => yflip === 1),
    0.06,
    'yflip',
  );
  near(
    share(({ scale }) => scale !== 0),
    0.12,
    'scale',
  );
  near(
    share(({ rotate }) => rotate !== 0),
    0.12,
    'rotate',
  );
  near(
    share(({ aniso }) => aniso !== 0),
    0.12,
    'aniso',
  );
  near(
    share(({ anisoAngle }) => anisoAngle !== 0),
    0.5,
    'anisoAngle',
  );
  near(
    share(({ translate: [x] }) => x !== 0),
    0.12,
    'translate',
  );
  const scales = new Augmenter({ p: 1 }).draw(key, 2000).map(({ scale }) => scale);
  const mean = scales.reduce((sum, x) => sum + x) / 2000;
  const variance = scales.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 2000;
  t.ok(Math.abs(mean) < 4 / Math.sqrt(2000) && Math.abs(variance - 1) < 0.13, `normal: ${mean}, ${variance}`);
});

t.test('many images in parts, any number of threads, nothing left behind', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    using augmenter = new Augmenter({ p: 1 });
    const images = randn([70, 1, 8, 8], { seed: 1 });
    const results: Float32Array[] = [];
    for (const threads of [1, 2]) {
      setNumThreads(threads);
      const augmented = scope(() => augmenter.augment(images, { seed: 2 }));
      results.push((await augmented.images.data()) as Float32Array);
      const last = augmenter.augment(images.slice(0, 69, 70), { seed: 2, firstSample: 69 });
      t.same(await last.images.data(), results[0].subarray(69 * 64), 'the last one alone');
      t.same(await last.labels.data(), ((await augmented.labels.data()) as Float32Array).subarray(69 * 9));
    }
    t.same(results[0], results[1]);
  });
});

t.test('options and shapes', async (t) => {
  await assertFails(t, () => new Augmenter({ p: 1.5 }), 'OptionError', /p is 1\.5/);
  await assertFails(t, () => new Augmenter({ p: 0.1, turn: 1 } as never), 'OptionError', /turn/);
  using augmenter = new Augmenter({ p: 0.1 });
  await assertFails(t, () => augmenter.apply(tensor([1, 2]), []), 'ShapeError', /\[2\], expected \[B, C, H, W\]/);
  await assertFails(t, () => augmenter.apply(randn([2, 1, 4, 4]), []), 'OptionError', /2 images need as many draws/);
});
