/** FID, Inception Score, precision and recall against guided-diffusion's own code (goldens/fid), and the numerics of each on its own, on every code path. */
import t from 'tap';
import { cpuVariants, setDefaultDevice } from '../../lib/device.js';
import {
  FeatureStatistics,
  frechetDistance,
  type Gaussian,
  InceptionScore,
  manifoldRadii,
  precisionRecall,
} from '../../lib/metrics/index.js';
import { assertFails, loadFixture, maxElementError, maxRelativeError, numbers } from '../helpers.js';

const golden = loadFixture('goldens/fid.safetensors');
const f64 = (name: string) => golden.tensor(name).data as Float64Array;
const { config, tol } = golden.json;
const width: number = config.D;
const [a, b] = [f64('fid.feat_a'), f64('fid.feat_b')];

async function moments(rows: Float32Array | Float64Array, size = width, batch = 64): Promise<Gaussian> {
  const of = new FeatureStatistics(size);
  for (let at = 0; at < rows.length; at += batch * size) await of.add(rows.subarray(at, at + batch * size));
  return of.result();
}
const relative = (actual: number, expected: number): number => Math.abs(actual / expected - 1);

for (const device of cpuVariants()) {
  t.test(device, { timeout: 120_000 }, async (t) => {
    setDefaultDevice(device);
    t.teardown(() => setDefaultDevice('cpu'));

    await t.test('mean, covariance and FID of the original', async (t) => {
      const [of, other] = [await moments(a), await moments(b)];
      for (const [name, found] of Object.entries({ a: of, b: other })) {
        t.ok(maxElementError(found.mean, f64(`fid.mu_${name}`), 1e-3) < 1e-12, `mean ${name}`);
        t.ok(maxRelativeError(found.covariance, f64(`fid.sigma_${name}`)) < 1e-13, `covariance ${name}`);
      }
      const distance = await frechetDistance(of, other);
      t.ok(relative(distance, f64('fid.value')[0]) <= tol.fid_rel, `${distance}`);
      t.ok(relative(distance, f64('fid.value_edm')[0]) <= tol.fid_rel, "EDM's form");
      const swapped = await frechetDistance(other, of);
      t.ok(relative(swapped, distance) <= tol.fid_rel, 'symmetric');
    });

    await t.test('of features in f32', async (t) => {
      const distance = await frechetDistance(await moments(Float32Array.from(a)), await moments(Float32Array.from(b)));
      t.ok(relative(distance, f64('fid_f32.value')[0]) <= tol.fid_rel, `${distance}`);
      const rounding = relative(distance, f64('fid.value')[0]) / tol.fid_from_f32_features_rel;
      t.ok(Math.abs(rounding - 1) < 0.01, `what the rounding of features does: ${rounding} of what was measured`);
    });

    await t.test('of fewer samples than features', async (t) => {
      const few = Number(golden.tensor('fid_small.n').data[0]);
      const singular = await moments(b.subarray(0, few * width));
      const distance = await frechetDistance(await moments(a), singular);
      const error = relative(distance, f64('fid_small.value')[0]);
      t.ok(error <= tol.fid_small_rel.svd_route, `relative error ${error}`);
    });

    await t.test('Inception Score', async (t) => {
      for (const [i, size] of config.splits.entries()) {
        const score = new InceptionScore(config.probs[1], { splitSize: size });
        const probabilities = f64('is.probs');
        score.addProbabilities(probabilities.subarray(0, 300 * config.probs[1]));
        score.addProbabilities(probabilities.subarray(300 * config.probs[1]));
        const { score: value, splits } = score.result();
        t.ok(relative(value, f64('is.value')[i]) <= tol.inception_score_rel, `splits of ${size}: ${value}`);
        t.ok(maxElementError(splits, f64(`is.per_split${i}`)) <= tol.inception_score_rel);
      }
    });

    await t.test('precision and recall', async (t) => {
      t.ok(maxElementError(await manifoldRadii(a, width), f64('pr.radii_a')) <= tol.radii_rel, 'radii of a');
      t.ok(maxElementError(await manifoldRadii(b, width), f64('pr.radii_b')) <= tol.radii_rel, 'radii of b');
      const found = await precisionRecall(a, b, width);
      t.equal(found.precision, f64('pr.precision')[0]);
      t.equal(found.recall, f64('pr.recall')[0]);
    });

    // 300 features: several tiles and panels, and a rank below both.
    await t.test('a known trace: covariances that commute', async (t) => {
      const size = 300;
      for (const rank of [300, 170, 40, 1]) {
        const [of, other, expected] = commuting(size, rank);
        const distance = await frechetDistance(of, other);
        t.ok(relative(distance, expected) < 1e-11, `rank ${rank}: ${distance}, expected ${expected}`);
      }
    });

    await t.test('more rows than a block, against all pairs', async (t) => {
      const size = 5;
      const rows = numbers(3, 4500 * size);
      const radii = await manifoldRadii(rows, size, { k: 2 });
      const error = [0, 191, 192, 2047, 2048, 4499].map((i) => relative(radii[i], radiusOf(rows, size, i, 2)));
      t.ok(Math.max(...error) < 1e-10, `${Math.max(...error)}`);
      const samples = numbers(4, 2100 * size, 1.1);
      const seen: number[] = [];
      const found = await precisionRecall(rows, samples, size, { k: 2, onProgress: ({ done }) => seen.push(done) });
      const of = await manifoldRadii(samples, size, { k: 2 });
      t.equal(found.precision, shareInside(samples, rows, radii, size));
      t.equal(found.recall, shareInside(rows, samples, of, size));
      t.same(
        seen,
        [...seen.keys()].map((i) => i + 1),
        'progress block by block',
      );
    });
  });
}

/** Q diag(x) Q^T and Q diag(y) Q^T with a reflection Q, y zero beyond the rank: tr sqrt of the product is the sum of sqrt(x y). */
function commuting(size: number, rank: number): [Gaussian, Gaussian, number] {
  const direction = numbers(1, size);
  const norm = direction.reduce((sum, v) => sum + v * v, 0);
  const u = Float64Array.from(direction, (v) => v / Math.sqrt(norm));
  const values = [numbers(2, size), numbers(5, size)].map((row) => Float64Array.from(row, (v) => 10 ** (2 * v)));
  values[1].fill(0, rank);
  const gaussians = values.map((of) => {
    const covariance = new Float64Array(size * size);
    const inner = of.reduce((sum, value, k) => sum + u[k] ** 2 * value, 0);
    for (let i = 0; i < size; i++)
      for (let j = 0; j < size; j++) {
        const product = u[i] * u[j];
        covariance[i * size + j] = (i === j ? of[i] : 0) - 2 * product * (of[i] + of[j]) + 4 * product * inner;
      }
    return { mean: new Float64Array(size), covariance };
  });
  let expected = 0;
  for (let k = 0; k < size; k++) expected += (Math.sqrt(values[0][k]) - Math.sqrt(values[1][k])) ** 2;
  return [gaussians[0], gaussians[1], expected];
}

function squared(x: Float32Array, i: number, y: Float32Array, j: number, size: number): number {
  let sum = 0;
  for (let k = 0; k < size; k++) sum += (x[i * size + k] - y[j * size + k]) ** 2;
  return sum;
}
function radiusOf(rows: Float32Array, size: number, i: number, k: number): number {
  const all = Array.from({ length: rows.length / size }, (_, j) => squared(rows, i, rows, j, size));
  return all.filter((_, j) => j !== i).sort((x, y) => x - y)[k - 1];
}
function shareInside(of: Float32Array, set: Float32Array, radii: Float64Array, size: number): number {
  let inside = 0;
  for (let i = 0; i < of.length / size; i++) if (radii.some((r, j) => squared(of, i, set, j, size) <= r)) inside++;
  return inside / (of.length / size);
}

t.test('the same bits however the rows are cut, and parts merge to the whole', async (t) => {
  const whole = await moments(a, width, 500);
  t.same(await moments(a, width, 7), whole, 'batches of 7');
  const [first, second] = [new FeatureStatistics(width), new FeatureStatistics(width)];
  await Promise.all([first.add(a.subarray(0, 100 * width)), second.add(a.subarray(100 * width))]);
  await first.merge(second);
  await first.merge(new FeatureStatistics(width));
  t.equal(first.count, 500);
  const merged = await first.result();
  t.ok(maxRelativeError(merged.covariance, whole.covariance) < 1e-14);
  t.ok(maxElementError(merged.mean, whole.mean, 1e-3) < 1e-13);
});

t.test('large means cost no digits', async (t) => {
  const shifted = await moments(Float64Array.from(a, (v) => v + 1e6));
  t.ok(maxRelativeError(shifted.covariance, f64('fid.sigma_a')) < 1e-9, 'the numbers themselves have 10 digits left');
});

t.test('the distance of a set from itself is 0, also where features are 0 or equal', async (t) => {
  const rows = Float64Array.from(a, (v, i) => (i % width < 3 ? 0 : i % width < 5 ? a[i - (i % width) + 5] : v));
  const of = await moments(rows);
  const trace = of.mean.reduce((sum, _, i) => sum + of.covariance[i * width + i], 0);
  t.ok((await frechetDistance(of, of)) < 1e-12 * trace);
  const none = { mean: new Float64Array(2), covariance: new Float64Array(4) };
  t.equal(await frechetDistance(none, none), 0);
});

t.test('logits: the softmax is in f64, and large logits do not overflow', (t) => {
  const [score, shifted] = [new InceptionScore(10), new InceptionScore(10)];
  const logits = numbers(1, 500, 4);
  score.addLogits(Float64Array.from(logits));
  shifted.addLogits(Float64Array.from(logits, (v) => v + 5000));
  t.ok(relative(score.result().score, shifted.result().score) < 1e-10);
  const uniform = new InceptionScore(4);
  uniform.addLogits(new Float32Array(40));
  t.equal(uniform.result().score, 1);
  t.end();
});

t.test('the event loop goes on while a distance is computed', async (t) => {
  const size = 600;
  const of = await moments(numbers(9, 700 * size), size);
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await frechetDistance(of, of);
  clearInterval(timer);
  t.ok(turns > 1, `${turns} turns`);
});

t.test('what does not fit', async (t) => {
  const of = new FeatureStatistics(3);
  await assertFails(t, () => new FeatureStatistics(0), 'OptionError', /width is 0, expected an integer/);
  await assertFails(t, () => of.add(new Float32Array(4)), 'ShapeError', /4 numbers are no whole rows of 3/);
  await assertFails(t, () => of.result(), 'DataError', /at least 2 samples, got 0/);
  await of.add(new Float32Array(3));
  await assertFails(t, () => of.add(Float32Array.of(1, Number.NaN, 3)), 'DataError', /Feature 1 of sample 1 is NaN/);
  await assertFails(t, () => of.merge(new FeatureStatistics(2)), 'ShapeError', /features of 2 into those of 3/);
  const pair = (mean: number[], covariance: number[]) => ({
    mean: Float64Array.from(mean),
    covariance: Float64Array.from(covariance),
  });
  const fine = pair([0, 0], [1, 0, 0, 1]);
  await assertFails(t, () => frechetDistance(fine, pair([0], [1])), 'ShapeError', /2 and 1 features/);
  await assertFails(t, () => frechetDistance(fine, pair([0, 0], [1])), 'ShapeError', /1 numbers for 2 features/);
  await assertFails(t, () => frechetDistance(fine, pair([0, Number.NaN], [1, 0, 0, 1])), 'DataError', /not finite/);
  await assertFails(t, () => frechetDistance(fine, pair([0, 0], [1, Number.NaN, 0, 1])), 'DataError', /not finite/);
  await assertFails(t, () => frechetDistance(fine, pair([0, 0], [1, 2, 2, 1])), 'DataError', /positive semidefinite/);
  await assertFails(
    t,
    () => precisionRecall(a, b.subarray(1), width),
    'ShapeError',
    /the samples has .* no whole rows/,
  );
  await assertFails(t, () => manifoldRadii(a.subarray(0, 3 * width), width), 'DataError', /more than 3 samples, got 3/);
  await assertFails(t, () => manifoldRadii(a, width, { k: 0 }), 'OptionError', /k/);
  await assertFails(t, () => new InceptionScore(3).result(), 'DataError', /at least one image/);
  const score = new InceptionScore(3);
  await assertFails(t, () => score.addLogits(new Float32Array(4)), 'ShapeError', /rows of 3 classes/);
  await assertFails(t, () => score.addLogits(Float32Array.of(0, Number.NaN, 0)), 'DataError', /probability NaN/);
  await assertFails(t, () => new InceptionScore(3, { splitSize: 0 }), 'OptionError', /splitSize/);
  const aborted = AbortSignal.abort(new Error('enough'));
  await t.rejects(precisionRecall(a, b, width, { signal: aborted }), /enough/);
});
