/** evaluate() and its references, with extractors small enough to compute by hand: what each metric is of, streaming, files, the cache, errors. */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { DataError } from '../../lib/errors.js';
import { hostArray, saveImage, writeImageNpz, writeNpz } from '../../lib/io/index.js';
import {
  collectStatistics,
  type EvaluateProgress,
  evaluate,
  FeatureStatistics,
  type Features,
  frechetDistance,
  InceptionScore,
  openImages,
  openReference,
  precisionRecall,
} from '../../lib/metrics/index.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertFails, settledMemory } from '../helpers.js';

const [height, width] = [4, 6];
const bytes = height * width * 3;

/** Random pixels, darker or lighter. */
function pixels(seed: number, count: number, high = 256): Uint8Array {
  let state = seed;
  return Uint8Array.from({ length: count * bytes }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * high);
  });
}
function* batches(data: Uint8Array, sizes: readonly number[]) {
  let at = 0;
  for (const n of sizes) {
    yield { data: data.subarray(at, at + n * bytes), shape: [n, height, width, 3] };
    at += n * bytes;
  }
}

/** Features: means of the rows, 4 x 3; spatial: of the columns' green, 6; logits: mean of each channel over 16. */
const extractor = Object.assign(
  (images: Tensor): Features => {
    const x = images.to('f32');
    const rows = x.mean([2]).reshape([-1, height * 3]);
    return { features: rows, spatial: x.mean([1]).slice(2, 1, 2).reshape([-1, width]), logits: x.mean([1, 2]).div(16) };
  },
  { cacheKey: 'test' },
);
function byHand(data: Uint8Array): { features: Float32Array; spatial: Float32Array; logits: Float32Array } {
  const n = data.length / bytes;
  const [features, spatial, logits] = [n * height * 3, n * width, n * 3].map((length) => new Float64Array(length));
  data.forEach((value, i) => {
    const [image, y, x, c] = [
      Math.floor(i / bytes),
      Math.floor(i / (width * 3)) % height,
      Math.floor(i / 3) % width,
      i % 3,
    ];
    features[(image * height + y) * 3 + c] += value / width;
    if (c === 1) spatial[image * width + x] += value / height;
    logits[image * 3 + c] += value / (height * width * 16);
  });
  return {
    features: Float32Array.from(features),
    spatial: Float32Array.from(spatial),
    logits: Float32Array.from(logits),
  };
}
async function gaussian(rows: Float32Array, size: number) {
  const of = new FeatureStatistics(size);
  await of.add(rows);
  return of.result();
}
const near = (a: number | undefined, b: number, tolerance = 1e-5): boolean =>
  Math.abs((a as number) / b - 1) < tolerance;

const [a, b] = [pixels(1, 50), pixels(2, 40, 200)];

t.test('each metric is of what it says', async (t) => {
  const [of, other] = [byHand(a), byHand(b)];
  const before = (await settledMemory()).liveBuffers;
  const seen: EvaluateProgress[] = [];
  const found = await evaluate({
    samples: batches(b, [7, 20, 13]),
    reference: batches(a, [50]),
    extractor,
    batch: 8,
    splitSize: 15,
    onProgress: (step) => seen.push(step),
  });
  t.same([found.samples, found.reference], [40, 50]);
  const fid = await frechetDistance(await gaussian(of.features, 12), await gaussian(other.features, 12));
  t.ok(near(found.fid, fid), `FID ${found.fid}, ${fid}`);
  const sfid = await frechetDistance(await gaussian(of.spatial, 6), await gaussian(other.spatial, 6));
  t.ok(near(found.sfid, sfid), `sFID ${found.sfid}, ${sfid}`);
  const score = new InceptionScore(3, { splitSize: 15 });
  score.addLogits(other.logits);
  t.ok(near(found.inceptionScore, score.result().score), 'Inception Score');
  t.ok(near(found.inceptionScoreDeviation, score.result().deviation, 1e-3), 'its deviation');
  const { precision, recall } = await precisionRecall(of.features, other.features, 12);
  t.same([found.precision, found.recall], [precision, recall]);
  t.ok(precision > 0 && recall < 1, 'not everything is inside');
  t.same(
    seen.filter(({ phase }) => phase === 'samples').map(({ done }) => done),
    [7, 15, 23, 27, 35, 40],
    'batches are cut to 8',
  );
  t.equal(seen.at(-1)?.phase, 'precision and recall');
  t.equal((await settledMemory()).liveBuffers, before, 'no tensor is left');
});

t.test('only what is asked for, and a score without a reference', async (t) => {
  t.strictSame(Object.keys(await evaluate({ samples: batches(a, [50]), extractor, metrics: ['is'] })).sort(), [
    'inceptionScore',
    'inceptionScoreDeviation',
    'reference',
    'samples',
  ]);
  const known = await collectStatistics(batches(a, [25, 25]), { extractor, metrics: ['fid'] });
  t.strictSame([known.count, known.spatial, known.rows], [50, undefined, undefined]);
  const found = await evaluate({ samples: batches(a, [50]), reference: known, extractor, metrics: ['fid'] });
  t.ok((found.fid as number) < 1e-9, 'the same images');
  const asked = { samples: batches(a, [50]), reference: known, extractor, metrics: ['sfid', 'pr'] as const };
  await assertFails(
    t,
    () => evaluate(asked),
    'DataError',
    /no mean and covariance of the spatial .* \(sfid\), no .*\(pr\)/,
  );
});

t.test('references in files', async (t) => {
  const folder = t.testdir();
  const cache = join(folder, 'cache');
  const [npz, images] = [join(folder, 'images.npz'), join(folder, 'images')];
  await writeImageNpz(npz, [a], [50, height, width, 3]);
  mkdirSync(images);
  for (let i = 0; i < 50; i++) {
    const data = a.slice(i * bytes, (i + 1) * bytes);
    await saveImage(join(images, `${String(i).padStart(2, '0')}.png`), { data, height, width, channels: 3 });
  }
  const whole = await collectStatistics(batches(a, [50]), { extractor });
  for (const path of [npz, images]) {
    let calls = 0;
    const count = (x: Tensor): Features => {
      calls++;
      return extractor(x);
    };
    const counted = Object.assign(count, { cacheKey: 'test' });
    const options = { extractor: counted, cache, batch: 20 };
    t.match(await openReference(path, options), whole, `computed from ${path}`);
    t.equal(calls, 3);
    t.match(await openReference(path, options), whole, 'from the cache');
    t.equal(calls, 3, 'nothing was computed');
    await openReference(path, { ...options, extractor: Object.assign(counted, { cacheKey: 'another' }) });
    t.equal(calls, 6, 'of another extractor');
    await openReference(path, { ...options, cache: false });
    await openReference(path, { ...options, extractor: (x: Tensor) => counted(x) });
    t.equal(calls, 12, 'without a cache, or a name');
  }
  t.equal(readdirSync(join(cache, 'references')).length, 4);

  const moments = (suffix: string, { mean, covariance } = whole.features as NonNullable<typeof whole.features>) => ({
    [`mu${suffix}`]: hostArray(mean),
    [`sigma${suffix}`]: hostArray(covariance, [mean.length, mean.length]),
  });
  const published = join(folder, 'published.npz');
  await writeNpz(published, { ...moments(''), ...moments('_s', whole.spatial) });
  const none = (): never => {
    throw new Error('nothing is to be computed');
  };
  const read = await openReference(published, { extractor: none, metrics: ['fid', 'sfid'] });
  t.same([read.features, read.spatial, read.count], [whole.features, whole.spatial, undefined]);
  await assertFails(
    t,
    () => openReference(published, { extractor: none }),
    'DataError',
    /no images or features \(pr\)/,
  );

  const both = join(folder, 'both.npz');
  const arr_0 = hostArray(a, [50, height, width, 3]);
  await writeNpz(both, { ...moments('', whole.features), arr_0 });
  const mixed = await openReference(both, { extractor, cache });
  t.same([mixed.features, mixed.spatial, mixed.rows, mixed.count], [whole.features, whole.spatial, whole.rows, 50]);

  const wrong = join(folder, 'wrong.npz');
  await writeNpz(wrong, { mu: hostArray(new Float64Array(3)), sigma: hostArray(new Float64Array(4), [2, 2]) });
  const message = /mu f64 \[3\] and sigma f64 \[2, 2\]; expected floats \[D\] and \[D, D\]/;
  await assertFails(t, () => openReference(wrong, { extractor }), 'FileFormatError', message);
  await writeNpz(wrong, { other: hostArray(new Float64Array(3)) });
  await assertFails(t, () => openReference(wrong, { extractor }), 'DataError', /has no mean and covariance/);
  await assertFails(t, () => openReference(join(folder, 'none'), { extractor }), 'DataError', /no data set/);
});

t.test('images from files, as many as asked for', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'images.npz');
  await writeImageNpz(path, [a], [50, height, width, 3]);
  using images = await openImages(path, { limit: 33 });
  t.equal(images.count, 33);
  const parts = [];
  for await (const { data, shape } of images.batches(16)) parts.push([shape[0], data.length / bytes]);
  t.same(parts, [
    [16, 16],
    [16, 16],
    [1, 1],
  ]);
  writeFileSync(path, 'no archive');
  await assertFails(t, () => openImages(path), 'FileFormatError', /images\.npz/);
  await assertFails(t, () => openImages(path, { limit: 0 }), 'OptionError', /limit/);
});

t.test('aborted between batches', async (t) => {
  const abort = new AbortController();
  let done = 0;
  async function* endless() {
    for (;;) {
      if (++done === 3) abort.abort(new Error('enough'));
      yield { data: a.subarray(0, bytes), shape: [1, height, width, 3] };
    }
  }
  const options = { samples: endless(), extractor, metrics: ['is'] as const, signal: abort.signal };
  await t.rejects(evaluate(options), /enough/);
  t.equal(done, 3, 'no batch was asked for after it');
});

t.test('what does not fit is said', async (t) => {
  const samples = () => batches(a, [50]);
  const fails = (options: object, name: string, message: RegExp) =>
    assertFails(t, () => evaluate({ samples: samples(), extractor, ...options } as never), name, message);
  await fails({}, 'OptionError', /fid, sfid, pr need a reference/);
  await fails({ metrics: [] }, 'OptionError', /metrics/);
  await fails({ metrics: ['kid'] }, 'OptionError', /metrics/);
  await fails({ samples: 3 }, 'OptionError', /samples .*batches of images/);
  await fails({ extractor: 'inception' }, 'OptionError', /extractor/);
  await fails({ metrics: ['is'], samples: [] }, 'DataError', /There are no images/);
  await fails(
    { metrics: ['is'], samples: [{ data: a, shape: [1, 2, 3, 3] }] },
    'ShapeError',
    /\[1, 2, 3, 3\] with 3600 bytes/,
  );
  const given = (features: object) => ({ metrics: ['fid'], reference: samples(), extractor: () => features });
  await fails(given({}), 'ShapeError', /extractor's features are missing, expected f32 \[32, \*\]/);
  await fails(given({ features: tensor([1, 2]) }), 'ShapeError', /features are f32 \[2\]/);
  const noSpatial = (x: Tensor) => ({ features: extractor(x).features });
  await fails({ metrics: ['sfid'], reference: samples(), extractor: noSpatial }, 'ShapeError', /spatial are missing/);
  const broken = (x: Tensor) => ({ features: extractor(x).features.mul(Number.NaN) });
  await fails(
    { metrics: ['fid'], reference: samples(), extractor: broken },
    'DataError',
    /Feature 0 of sample 0 is NaN/,
  );
  await fails({ metrics: ['pr'], reference: batches(a, [3]) }, 'DataError', /more than 3 samples, got 3/);
  await fails({ metrics: ['fid'], reference: batches(a, [1]) }, 'DataError', /at least 2 samples, got 1/);
  const other = { count: 3, features: { mean: new Float64Array(2), covariance: new Float64Array(4) } };
  await fails({ metrics: ['fid'], reference: other }, 'ShapeError', /is of 2 features, the extractor gives 12/);
  const boom = new DataError('boom');
  async function* failing() {
    yield* samples();
    throw boom;
  }
  await t.rejects(evaluate({ samples: failing(), extractor, metrics: ['is'] }), boom);
});
