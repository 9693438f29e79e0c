/** samplerStep: against its formula in double precision, and its noise against randn(). */
import t from 'tap';
import { ShapeError } from '../../lib/errors.js';
import { randn } from '../../lib/ops/random.js';
import { type SamplerStepOptions, samplerStep } from '../../lib/ops/sampler.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, numbers, withoutLeaks } from '../helpers.js';

const [batch, channels] = [3, 4];
const coefficients = { denoised: [1.25, -0.75], next: [0.4, 0.7] } as const;
const f64 = async (x: Tensor) => Array.from((await x.data()) as Float32Array, Number);

interface Case {
  name: string;
  plane: number[];
  outputs: number;
  guided?: number;
  options: (tensors: { a: Tensor; b: Tensor; z: Tensor }) => Partial<SamplerStepOptions>;
}

const key = { seed: 7, stream: 5, firstSample: 11 };
const cases: Case[] = [
  { name: 'no more than D', plane: [4, 4], outputs: 4, options: () => ({}) },
  { name: 'clipped, guided', plane: [2, 2], outputs: 8, guided: 3, options: () => ({ clip: true }) },
  { name: 'guided on all channels, planes of 15', plane: [3, 5], outputs: 4, guided: 4, options: () => ({}) },
  {
    name: 'learned variance, noise given',
    plane: [4, 3],
    outputs: 8,
    guided: 2,
    options: ({ z }) => ({ noise: { sigma: 0.3, spread: 0.5, from: z } }),
  },
  {
    name: 'noise drawn, planes of 9',
    plane: [3, 3],
    outputs: 8,
    options: () => ({ noise: { sigma: 0.3, spread: -0.25, from: key }, scaledBy: 0.5 }),
  },
  {
    name: 'noise drawn, planes of 64, two terms',
    plane: [8, 8],
    outputs: 5,
    options: ({ a, b }) => ({
      noise: { sigma: 2, from: key },
      plus: [
        [0.2, a],
        [-0.6, b],
      ],
      scaledBy: 3,
    }),
  },
  { name: 'one term', plane: [2, 6], outputs: 4, options: ({ b }) => ({ plus: [[-1.5, b]] }) },
];

t.test('values', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const { name, plane, outputs, guided, options } of cases) {
      await withoutLeaks(t, device, async () => {
        const size = plane.reduce((n, d) => n * d, 1);
        const make = (seed: number, b = batch, c = channels): Tensor =>
          tensor(numbers(seed, b * c * size, 2), { shape: [b, c, ...plane], device });
        const [x, a, b, z] = [1, 2, 3, 4].map((seed) => make(seed));
        const raw = make(5, guided ? 2 * batch : batch, outputs);
        const drawn = randn(x.shape, { ...key, device });
        for (const dtype of ['f32', 'bf16'] as const) {
          const output = raw.to(dtype);
          const chosen = options({ a, b, z });
          const guidance = guided ? { scale: 2.5, channels: guided } : undefined;
          const result = samplerStep(x, output, { ...coefficients, guidance, ...chosen });
          const [xs, as, bs, out] = [await f64(x), await f64(a), await f64(b), await f64(output)];
          const zs = await f64(chosen.noise?.from === z ? z : drawn);
          const expected: Record<'denoised' | 'sample' | 'scaled', number[]> = { denoised: [], sample: [], scaled: [] };
          for (let i = 0; i < xs.length; i++) {
            const [n, c, e] = [Math.floor(i / size / channels), Math.floor(i / size) % channels, i % size];
            const at = (sample: number, channel: number): number => out[(sample * outputs + channel) * size + e];
            let f = at(n, c);
            if (guided && c < guided) f = at(n + batch, c) + 2.5 * (f - at(n + batch, c));
            let d = 1.25 * xs[i] - 0.75 * f;
            if (chosen.clip) d = Math.min(Math.max(d, -1), 1);
            let y = 0.4 * xs[i] + 0.7 * d;
            for (const [by, term] of chosen.plus ?? []) y += by * (term === a ? as : bs)[i];
            const { sigma = 0, spread = 0 } = chosen.noise ?? {};
            y += sigma * Math.exp(spread === 0 ? 0 : spread * at(n, channels + c)) * zs[i];
            expected.denoised.push(d);
            expected.sample.push(y);
            expected.scaled.push(y * (chosen.scaledBy ?? 0));
          }
          for (const [what, values] of Object.entries(expected)) {
            const actual = result[what as keyof typeof expected];
            if (what === 'scaled' && chosen.scaledBy === undefined) t.equal(actual, undefined);
            else assertClose(t, await f64(actual as Tensor), values, 5e-7, `${name}, ${dtype}: ${what}`);
          }
        }
      });
    }
  }),
);

t.test('the noise is the numbers of randn(), whatever the batch', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const shape of [
      [5, 2, 8, 8],
      [2, 3, 5, 5],
      [1, 1, 1, 1],
    ]) {
      const zero = tensor(new Float32Array(shape.reduce((n, d) => n * d, 1)), { shape, device });
      const { sample } = samplerStep(zero, zero, { next: [0, 0], noise: { sigma: 1, from: key } });
      const expected = randn(shape, { ...key, device });
      t.equal(Buffer.compare(await sample.bytes(), await expected.bytes()), 0, String(shape));
      const last = zero.slice(0, shape[0] - 1, shape[0]);
      const from = { ...key, firstSample: key.firstSample + shape[0] - 1 };
      const alone = samplerStep(last, last, { next: [0, 0], noise: { sigma: 1, from } }).sample;
      t.same(await alone.data(), await expected.slice(0, shape[0] - 1, shape[0]).data());
    }
  }),
);

t.test('what does not fit is one typed error', async (t) => {
  const x = tensor(numbers(1, 16), { shape: [2, 2, 2, 2] });
  const small = tensor([1]);
  const [noise, next] = [{ sigma: 1, spread: 1, from: key }, [1, 0] as const];
  await assertFails(
    t,
    () => samplerStep(x, small, { next }),
    'ShapeError',
    /the output is \[1\], expected \[2, \*, 2, 2\]/,
  );
  await assertFails(t, () => samplerStep(x, x, { next, noise }), 'ShapeError', /expected \[2, 4, 2, 2\]/);
  await assertFails(
    t,
    () => samplerStep(x, x, { next, guidance: { scale: 2, channels: 2 } }),
    'ShapeError',
    /expected \[4, \*, 2, 2\]/,
  );
  t.throws(() => samplerStep(x, x, { next, plus: [[1, small]] }), ShapeError);
  await assertFails(t, () => samplerStep(x.to('i64'), x, { next }), 'DTypeError', /x is i64/);
});
