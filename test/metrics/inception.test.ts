/**
 * InceptionV3 against torch-fidelity's and pytorch-fid's own (in f64), on weights and images that both sides make from a formula: features, spatial features
 * and logits of images that are enlarged, reduced and left, and the FID of two small sets. Their published weights: names, shapes, folding.
 */
import { join } from 'node:path';
import t from 'tap';
import { cpuVariants, memory, setDefaultDevice } from '../../lib/device.js';
import {
  evaluate,
  type FeatureExtractor,
  InceptionV3,
  inceptionExtractor,
  inceptionTensors,
  loadInception,
} from '../../lib/metrics/index.js';
import { resizeMatrix } from '../../lib/metrics/resize.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor, zeros } from '../../lib/tensor.js';
import { assertClose, assertFails, withoutLeaks } from '../helpers.js';
import { fixture, images, writeWeights } from './inception-weights.js';

const folder = t.testdir();
const { sets, compared, fid, fid_exact: exact, names, shapes } = fixture.json;

const path = await writeWeights(join(folder, 'weights.safetensors'));

t.test('names and shapes of the published weights', async (t) => {
  const expected = Object.fromEntries((names as string[]).map((name, i) => [name, shapes[i]]));
  t.same(Object.fromEntries(inceptionTensors()), expected);
});

for (const device of cpuVariants()) {
  t.test(device, { timeout: 600_000 }, async (t) => {
    setDefaultDevice(device);
    t.teardown(() => setDefaultDevice('cpu'));
    await t.test('features, spatial features, logits', async (t) => {
      using tf = await loadInception(path);
      using torch = await loadInception(path, { resize: 'pytorch' });
      for (const [name, [seed, n, h, w]] of Object.entries<number[]>(sets)) {
        const run = async (extractor: FeatureExtractor, of: string, key: 'features' | 'spatial' | 'logits') =>
          withoutLeaks(t, device, async () => {
            const x = tensor(images(seed, n, h, w), { shape: [n, h, w, 3] });
            const found = await extractor(x);
            const { data, shape } = fixture.tensor(`${name}.${of}`);
            t.same(found[key]?.shape, shape);
            assertClose(t, (await found[key]?.data()) as Float32Array, data, 1e-4, `${name} ${of}`);
          });
        await run(tf, 'features', 'features');
        await run(tf, 'spatial', 'spatial');
        await run(tf, 'logits', 'logits');
        await run(torch, 'pytorch', 'features');
      }
    });
    await t.test('FID of two sets', async (t) => {
      using extractor = await loadInception(path);
      const batch = ([seed, n, h, w]: number[]) => [{ data: images(seed, n, h, w), shape: [n, h, w, 3] }];
      const found = await evaluate({
        samples: batch(compared.b),
        reference: batch(compared.a),
        extractor,
        metrics: ['fid'],
        batch: 5,
      });
      t.same([found.samples, found.reference], [12, 10]);
      t.ok(Math.abs((found.fid as number) / fid - 1) < 1e-3, `${found.fid}, pytorch-fid's is ${fid}`);
      t.ok(Math.abs((found.fid as number) / exact - 1) < 1e-5, `${found.fid}, exactly ${exact}`);
    });
  });
}

t.test('grey images are three equal channels; others are refused', async (t) => {
  using extractor = await loadInception(path);
  await scope(async () => {
    const grey = tensor(images(1, 1, 8, 3).slice(0, 64), { shape: [1, 8, 8, 1] });
    const rgb = tensor(
      Uint8Array.from({ length: 192 }, (_, i) => images(1, 1, 8, 3)[Math.floor(i / 3)]),
      {
        shape: [1, 8, 8, 3],
      },
    );
    const [one, three] = [await extractor(grey), await extractor(rgb)];
    t.same(await one.features.data(), await three.features.data());
    const four = zeros([1, 8, 8, 4], { dtype: 'u8' });
    await assertFails(t, () => extractor(four), 'ShapeError', /images are \[1, 8, 8, 4\]/);
  });
});

t.test('files that are not the weights', async (t) => {
  const wrong = join(folder, 'wrong.safetensors');
  await writeWeights(wrong, (shapes) => {
    shapes.delete('Mixed_6d.branch1x1.bn.running_var');
    shapes.set('fc.weight', [1000, 2048]);
  });
  const before = memory().liveBuffers;
  await assertFails(
    t,
    () => loadInception(wrong),
    'StateDictError',
    /missing: Mixed_6d\.branch1x1\.bn\.running_var; misshapen: fc\.weight: \[1000, 2048\], expected \[1008, 2048\]/,
  );
  t.equal(memory().liveBuffers, before, 'nothing is left');
  await assertFails(t, () => loadInception(join(folder, 'none')), 'FileError', /none/);
  await assertFails(t, () => loadInception(path, { resize: 'other' as 'pytorch' }), 'OptionError', /resize/);
});

t.test('a network of random weights needs no file and has no cache key', async (t) => {
  using network = new InceptionV3();
  t.equal(inceptionExtractor(network).cacheKey, undefined);
  t.equal(network.stateNames().length, 2 * 94 + 2);
  const { features, spatial, logits } = network.forward(noGrad(() => zeros([1, 299, 299, 3])));
  t.same(
    [features.shape, spatial.shape, logits.shape],
    [
      [1, 2048],
      [1, 2023],
      [1, 1008],
    ],
  );
});

t.test('resizing: weights of each pixel', (t) => {
  t.same([...resizeMatrix(2, 4, 'tensorflow')], [1, 0, 0.5, 0.5, 0, 1, 0, 1]);
  t.same([...resizeMatrix(2, 4, 'pytorch')], [1, 0, 0.75, 0.25, 0.25, 0.75, 0, 1]);
  t.same([...resizeMatrix(3, 1, 'pytorch')], [0, 1, 0]);
  t.end();
});
