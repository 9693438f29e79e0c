/**
 * The one way operations are checked: forward values, the gradient of every input, the same values without recording,
 * and no buffer left behind; and gradients by finite differences, where nothing else knows them.
 */
import type { Test } from 'tap';
import { type DeviceName, memory } from '../../lib/device.js';
import { noGrad, scope } from '../../lib/scope.js';
import type { Tensor } from '../../lib/tensor.js';
import { type FixtureTensor, maxElementError, maxRelativeError, numbers, toTensor } from '../helpers.js';

/** Inputs, expected results, and the call that should turn one into the other. */
export interface OpCase {
  name: string;
  inputs: Readonly<Record<string, FixtureTensor>>;
  run(inputs: Record<string, Tensor>): Tensor;
  out: FixtureTensor;
  /** Gradient of `out` that is sent back, and the gradients expected for it, by input. */
  dout?: FixtureTensor;
  grads?: Readonly<Record<string, FixtureTensor>>;
  /** Largest error of `out` and of the gradients, relative to the largest value of the tensor. Default 1e-6 each. */
  tolerance?: Readonly<{ out?: number; grad?: number }>;
  /** Measure errors per element instead, relative to max(|value|, floor): for values of many magnitudes. */
  floor?: number;
}

/** Runs one case on one device; one assertion, which names every error found or shows the largest deviations. */
export async function checkOp(t: Test, device: DeviceName, c: OpCase): Promise<void> {
  const { inputs, grads = {}, tolerance: { out: outTolerance = 1e-6, grad: gradTolerance = 1e-6 } = {} } = c;
  const measured: string[] = [];
  const problems: string[] = [];
  const compare = async (what: string, actual: Tensor | undefined, expected: FixtureTensor, tolerance: number) => {
    if (!actual) return problems.push(`no ${what}`);
    if (String(actual.shape) !== String(expected.shape))
      return problems.push(`${what} is [${actual.shape}], not [${expected.shape}]`);
    const data = await actual.data();
    // Integers have to be equal; a number would round a large one.
    if (actual.dtype !== 'f32')
      return String(data) === String(expected.data) || problems.push(`${what} is ${data}, not ${expected.data}`);
    const { floor } = c;
    const error =
      floor === undefined ? maxRelativeError(data, expected.data) : maxElementError(data, expected.data, floor);
    measured.push(`${what} ${error.toExponential(1)}`);
    return error <= tolerance || problems.push(`${what}: error ${error.toExponential(1)}, limit ${tolerance}`);
  };

  const before = memory(device).liveBuffers;
  await scope(async () => {
    const tensors = Object.fromEntries(
      Object.entries(inputs).map(([key, value]) => [key, toTensor(value, { device, requiresGrad: key in grads })]),
    );
    const y = c.run(tensors);
    await compare('out', y, c.out, outTolerance);
    const plain = noGrad(() => c.run(tensors));
    if (plain.requiresGrad) problems.push('recorded inside noGrad');
    if (Buffer.compare(await plain.bytes(), await y.bytes()) !== 0) problems.push('other values inside noGrad');
    if (!c.dout) return;
    y.backward(toTensor(c.dout, { device }));
    for (const [key, expected] of Object.entries(grads)) {
      const { grad } = tensors[key];
      await compare(`gradient of ${key}`, grad, expected, gradTolerance);
      grad?.dispose();
    }
  });
  const left = memory(device).liveBuffers - before;
  if (left > 0) problems.push(`${left} buffers left`);
  t.ok(problems.length === 0, `${c.name}: ${problems.length > 0 ? problems.join('; ') : measured.join(', ')}`);
}

/** <w, run(x)> for a fixed w, summed in double precision. */
async function weighted(y: Tensor): Promise<number> {
  const [data, w] = [await y.data(), numbers(99, y.size)];
  return w.reduce((sum, v, i) => sum + v * Number(data[i]), 0);
}

/**
 * Compares <gradient, v> with (f(x + h v) - f(x - h v)) / 2h for a random direction v of each input, where f weighs and
 * sums what `run` returns. The difference is measured against |gradient| |v|; one assertion.
 */
export async function checkSlopes(
  t: Test,
  device: DeviceName,
  { name, inputs, run, h = 1e-2 }: { name: string; inputs: FixtureTensor[]; run: (x: Tensor[]) => Tensor; h?: number },
): Promise<void> {
  const errors: number[] = [];
  await scope(async () => {
    const leaves = inputs.map((x) => toTensor(x, { device, requiresGrad: true }));
    const y = run(leaves);
    y.backward(toTensor({ shape: [...y.shape], data: numbers(99, y.size) }, { device }));
    for (const [i, { grad, size }] of leaves.entries()) {
      const v = numbers(7 + i, size);
      const moved = async (step: number): Promise<number> => {
        const data = (inputs[i].data as Float32Array).map((value, k) => value + step * v[k]);
        const at = inputs.map((x, j) => toTensor(j === i ? { ...x, data } : x, { device }));
        return weighted(run(at));
      };
      const slope = ((await moved(h)) - (await moved(-h))) / (2 * h);
      const g = Array.from((await grad?.data()) ?? [Number.NaN], Number);
      const expected = v.reduce((sum, value, k) => sum + value * g[k], 0);
      errors.push(Math.abs(slope - expected) / Math.max(Math.hypot(...g) * Math.hypot(...v), 1e-2));
      grad?.dispose();
    }
  });
  const found = errors.map((error) => error.toExponential(1)).join(', ');
  t.ok(
    errors.every((error) => error <= 2e-4),
    `${name}: slopes differ by ${found}`,
  );
}
