/** gaussianObjective: what it asks the network, and the weights of MDT's two passes, worked out by hand. */
import t from 'tap';
import '../../lib/autograd.js';
import { GaussianDiffusion } from '../../lib/diffusion/index.js';
import { Module } from '../../lib/nn/index.js';
import { randn } from '../../lib/ops/random.js';
import { full, type Tensor, tensor } from '../../lib/tensor.js';
import { type GaussianModel, gaussianObjective } from '../../lib/train/objective.js';
import { assertClose, withoutLeaks } from '../helpers.js';

interface Call {
  pass: 'full' | 'masked';
  x: Float32Array;
  t: number[];
  y?: number[];
  key?: object;
}

/** Predicts 0.25 in the full pass and -0.5 in the masked one; notes what it is asked. */
class Constant extends Module implements GaussianModel {
  readonly calls: Promise<Call>[] = [];
  readonly config: GaussianModel['config'];
  constructor(maskRatio: number, numClasses = 10) {
    super();
    this.config = { numClasses, learnSigma: false, maskRatio };
  }
  forward(x: Tensor, time: Tensor, y?: Tensor): Tensor {
    return this.answer(0.25, { pass: 'full' }, x, time, y);
  }
  forwardMasked(x: Tensor, time: Tensor, y: Tensor | undefined, key: object): Tensor {
    return this.answer(-0.5, { pass: 'masked', key }, x, time, y);
  }
  private answer(value: number, call: Pick<Call, 'pass' | 'key'>, x: Tensor, time: Tensor, y?: Tensor): Tensor {
    const read = Promise.all([x.data(), time.data(), y?.data()]);
    this.calls.push(
      read.then(([image, times, labels]) => ({
        ...call,
        x: image as Float32Array,
        t: Array.from(times, Number),
        y: labels && Array.from(labels, Number),
      })),
    );
    return full(x.shape, value, { device: x.device });
  }
}

const key = { seed: 11, stream: 32, firstSample: 0 };
const objective = gaussianObjective(new GaussianDiffusion({ learnSigma: false }));

t.test('the masked pass has the full pass’s images, timesteps, labels and weight', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const images = randn([4, 2, 4, 4], { seed: 5 });
    const labels = tensor([3, 1, 4, 1], { dtype: 'i64' });
    const noise = (await randn([4, 2, 4, 4], { seed: 11, stream: 33 }).data()) as Float32Array;
    const error = (prediction: number): number =>
      noise.reduce((sum, e) => sum + (e - prediction) ** 2, 0) / noise.length;

    const plain = new Constant(0);
    const alone = await objective(plain, { images, labels }, key).item();
    t.ok(Math.abs(alone / error(0.25) - 1) < 1e-6, 'maskRatio 0: the full pass');
    const model = new Constant(0.3);
    const both = await objective(model, { images, labels }, key).item();
    t.ok(Math.abs(both / (error(0.25) + error(-0.5)) - 1) < 1e-6, 'otherwise the sum of the two');

    const [[only], [first, second]] = [await Promise.all(plain.calls), await Promise.all(model.calls)];
    t.strictSame([plain.calls.length, model.calls.length], [1, 2]);
    t.strictSame([only, first.pass, second.pass], [first, 'full', 'masked']);
    t.strictSame({ ...second, pass: 'full', key: undefined }, { ...first, key: undefined });
    t.strictSame(second.key, { seed: 11, stream: 34, firstSample: 0 });
    t.strictSame(first.y, [3, 1, 4, 1]);
    t.ok(
      first.t.every((i) => Number.isInteger(i) && i >= 0 && i < 1000) && new Set(first.t).size > 1,
      `timesteps ${first.t.join(', ')}`,
    );

    const unlabelled = new Constant(0.3, 0);
    objective(unlabelled, { images, labels }, key);
    t.strictSame(
      (await Promise.all(unlabelled.calls)).map(({ y }) => y),
      [undefined, undefined],
      'no classes, no labels',
    );
  }),
);

t.test('a batch in parts is the same batch', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const images = randn([4, 2, 4, 4], { seed: 5 });
    const whole = new Constant(0.3);
    const loss = await objective(whole, { images }, key).item();
    let parts = 0;
    const split = new Constant(0.3);
    for (const [from, to] of [
      [0, 1],
      [1, 4],
    ]) {
      const part = objective(split, { images: images.slice(0, from, to) }, { ...key, firstSample: from });
      parts += ((await part.item()) * (to - from)) / 4;
    }
    t.ok(Math.abs(parts / loss - 1) < 1e-6, `${parts} and ${loss}`);
    const [all, ...rest] = [await whole.calls[0], await split.calls[0], await split.calls[2]];
    t.strictSame(
      rest.flatMap((call) => call.t),
      all.t,
      'timesteps',
    );
    // Not to the bit: one timestep is one factor for the whole batch.
    assertClose(
      t,
      rest.flatMap((call) => Array.from(call.x)),
      all.x,
      1e-6,
      'noised images',
    );
  }),
);
