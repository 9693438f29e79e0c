/**
 * DDPM, DDIM and DPM-Solver++(2M): whole loops step by step against DiT (goldens/gaussian_process) and NumPy (samplers),
 * DPM-Solver's order on an equation with a known solution, guidance, seeds, previews, aborting, bad input.
 */
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { memory, setDefaultDevice } from '../../lib/device.js';
import { type SampleDdimOptions, sampleDdim } from '../../lib/diffusion/ddim.js';
import { sampleDdpm } from '../../lib/diffusion/ddpm.js';
import { sampleDpmSolver } from '../../lib/diffusion/dpm-solver.js';
import { GaussianDiffusion, type GaussianNetwork } from '../../lib/diffusion/gaussian.js';
import type { GaussianSamplerOptions } from '../../lib/diffusion/gaussian-sampler.js';
import type { SamplerStep } from '../../lib/diffusion/sampler.js';
import * as F from '../../lib/nn/functional.js';
import { randn } from '../../lib/ops/random.js';
import { full, ones, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  type Fixture,
  forEachDevice,
  loadFixture,
  maxRelativeError,
  settledMemory,
  toTensor,
  withoutLeaks,
} from '../helpers.js';

const golden = loadFixture('goldens/gaussian_process.safetensors');
const twin = loadFixture('samplers.safetensors');
const { nullClass } = twin.json;

type Sampler = (network: GaussianNetwork, noise: Tensor, options: SampleDdimOptions) => AsyncGenerator<SamplerStep>;
/** By name; eta is DDIM's alone. */
const samplers: Record<string, Sampler> = {
  ddpm: (network, noise, { eta: _, ...options }) => sampleDdpm(network, noise, options),
  ddim: sampleDdim,
  dpm: (network, noise, { eta: _, ...options }) => sampleDpmSolver(network, noise, options),
};

const f32 = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array;
const column = (x: Tensor): Tensor => x.reshape([x.size, 1, 1, 1]);

/** [0.9 x + 0.35 sin(t / 1000), 0.6 x], the golden's; `asked` collects its timesteps. */
function plainToy(asked: Promise<Float32Array>[] = []): GaussianNetwork {
  const { a, b, c } = golden.json.config.toy;
  return {
    forward: (x, time) => {
      asked.push(f32(time));
      const wave = F.affine(F.sin(F.affine(column(time), 1 / 1000, 0)), b, 0);
      return F.concat([F.add(F.affine(x, a, 0), wave), F.affine(x, c, 0)], 1);
    },
  };
}

/** The network of make_samplers.py; `batches` collects how many outputs each call was asked for. */
function classToy(learnSigma = true, batches: number[] = []): GaussianNetwork {
  return {
    nullClass,
    forward: (images, times, labels) => {
      const y = column(labels!.to('f32'));
      batches.push(y.size);
      const twice = y.size > images.shape[0];
      const x = twice ? F.concat([images, images], 0) : images;
      const time = column(twice ? F.concat([times, times], 0) : times);
      const wave = F.affine(F.sin(F.mul(F.affine(y, 1, 1), F.affine(time, 1 / 1000, 0))), 0.3, 0);
      const eps = F.add(F.mul(x, F.affine(y, 0.03, 0.9)), wave);
      return learnSigma ? F.concat([eps, F.sub(F.tanh(x), F.affine(y, 0.1, 0))], 1) : eps;
    },
  };
}

/** Runs a sampler to its end, every step against `${name}.samples` and the predictions of the fixture. */
async function follow(
  t: Test,
  fixture: Fixture,
  name: string,
  predictions: string,
  run: (init: Tensor, stepNoise: (step: number) => Tensor) => AsyncGenerator<SamplerStep>,
): Promise<void> {
  const { shape } = fixture.tensor(`${name}.init`);
  const size = shape.reduce((n, d) => n * d, 1);
  const at = (what: string, i: number): Float32Array =>
    fixture.f32(`${name}.${what}`).subarray(i * size, (i + 1) * size);
  const count = fixture.tensor(`${name}.samples`).shape[0];
  const errors = { sample: 0, denoised: 0 };
  let last = 0;
  const init = toTensor(fixture.tensor(`${name}.init`));
  for await (const { step, steps, sample, denoised } of run(init, (i) => tensor(at('noises', i), { shape }))) {
    t.ok(step === ++last && steps === count, `${name} step ${step} of ${steps}`);
    errors.sample = Math.max(errors.sample, maxRelativeError(await f32(sample), at('samples', step - 1)));
    errors.denoised = Math.max(errors.denoised, maxRelativeError(await f32(denoised), at(predictions, step - 1)));
    if (step === steps) sample.dispose();
  }
  t.equal(last, count);
  t.ok(errors.sample < 5e-6, `${name}: every sample, error ${errors.sample.toExponential(1)}`);
  // At timestep 999 the prediction is a difference of numbers 150 times its size.
  t.ok(errors.denoised < 3e-5, `${name}: every prediction, error ${errors.denoised.toExponential(1)}`);
  t.notOk(init.isDisposed, 'the noise stays the caller’s');
}

t.test('whole loops equal the original step by step', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      t.equal(golden.json.config.loops.length, 4);
      for (const { tag, kind, respacing, clip_denoised: clipDenoised, eta } of golden.json.config.loops) {
        const asked: Promise<Float32Array>[] = [];
        const ddpm = new GaussianDiffusion({ respacing });
        await follow(t, golden, tag, 'pred_xstart', (init, stepNoise) =>
          kind === 'p'
            ? sampleDdpm(plainToy(asked), init, { ddpm, clipDenoised, stepNoise })
            : sampleDdim(plainToy(asked), init, { ddpm, clipDenoised, stepNoise, eta }),
        );
        const times = (await Promise.all(asked)).map((values) => Array.from(values));
        const expected = Array.from(golden.tensor(`${tag}.model_t`).data, Number).map((v) => [v, v]);
        t.strictSame(times, expected, `${tag}: the network sees timesteps of training`);
      }
    });
  }),
);

t.test('guidance, schedules, fixed variance and DPM-Solver++ equal NumPy step by step', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      const y = tensor(twin.json.labels, { dtype: 'i64' });
      // biome-ignore lint/suspicious/noExplicitAny: as make_samplers.py writes them
      for (const [name, loop] of Object.entries<any>(twin.json.loops)) {
        const { kind, respacing, schedule, learn_sigma: learnSigma } = loop;
        const ddpm = new GaussianDiffusion({ respacing, schedule, learnSigma });
        const options = { ddpm, y, cfgScale: loop.cfg, scalePow: loop.power, guidedChannels: loop.channels };
        const rest = { guidanceInterval: loop.interval, clipDenoised: loop.clip, eta: loop.eta };
        await follow(t, twin, name, 'denoised', (init, stepNoise) =>
          samplers[kind](classToy(learnSigma), init, { ...options, ...rest, stepNoise }),
        );
      }
    });
  }),
);

/** The last sample of a sampler. */
async function final(run: AsyncGenerator<SamplerStep>): Promise<Float32Array> {
  let result: Float32Array = new Float32Array();
  for await (const { step, steps, sample } of run) {
    if (step < steps) continue;
    result = await f32(sample);
    sample.dispose();
  }
  return result;
}

t.test('DPM-Solver++ converges at second order to the exact solution', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    // Data N(0, s^2) has the noise sigma x / v with v = alpha^2 s^2 + sigma^2, and the flow keeps x / sqrt(v).
    const s = 0.6;
    const { alphasCumprod } = new GaussianDiffusion();
    const variance = (i: number): number => alphasCumprod[i] * s * s + 1 - alphasCumprod[i];
    const eps = (i: number): number => Math.sqrt(1 - alphasCumprod[i]) / variance(i);
    const table = tensor(alphasCumprod.map((_, i) => [eps(i)]));
    const exact: GaussianNetwork = {
      forward: (x, time) => F.mul(x, column(F.embedding(table, time.to('i64')))),
    };
    const error = async (sampler: Sampler, count: number): Promise<number> => {
      const ddpm = new GaussianDiffusion({ respacing: `ddim${count}`, learnSigma: false });
      const noise = randn([1, 1, 4, 4], { seed: 3 });
      const { timesteps } = ddpm;
      const at = 200;
      const scale = Math.sqrt(variance(at) / variance(timesteps[timesteps.length - 1]));
      const truth = (await f32(noise)).map((v) => v * scale);
      let result = Number.NaN;
      for await (const { step, steps, sample } of sampler(exact, noise, { ddpm })) {
        if (timesteps[steps - 1 - step] === at) result = maxRelativeError(await f32(sample), truth);
        if (step === steps) sample.dispose();
      }
      return result;
    };
    const [dpm50, dpm100, ddim50, ddim100] = await Promise.all([
      error(sampleDpmSolver, 50),
      error(sampleDpmSolver, 100),
      error(sampleDdim, 50),
      error(sampleDdim, 100),
    ]);
    t.ok(dpm50 / dpm100 > 3, `twice the steps: error / ${(dpm50 / dpm100).toFixed(1)}`);
    t.ok(ddim50 / ddim100 < 2.5, `DDIM: error / ${(ddim50 / ddim100).toFixed(1)}`);
    t.ok(dpm50 < ddim50 / 10, 'and smaller than DDIM’s');
  });
});

t.test('the second half is computed only where guidance acts', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const y = tensor([0, 2], { dtype: 'i64' });
    const noise = randn([2, 4, 2, 2], { seed: 5 });
    const run = async (
      options: Partial<GaussianSamplerOptions>,
    ): Promise<{ batches: number[]; image: Float32Array }> => {
      const batches: number[] = [];
      const ddpm = new GaussianDiffusion({ respacing: '5' });
      return { image: await final(sampleDpmSolver(classToy(true, batches), noise, { ddpm, y, ...options })), batches };
    };
    t.strictSame((await run({})).batches, [2, 2, 2, 2, 2], 'off by default');
    t.strictSame((await run({ cfgScale: 2 })).batches, [4, 4, 4, 4, 4]);
    t.strictSame((await run({ cfgScale: 2, guidanceInterval: [250, 750] })).batches, [2, 4, 4, 4, 2]);
    const [three, four, all] = await Promise.all(
      [undefined, 4, 'all' as const].map((guidedChannels) => run({ cfgScale: 2, guidedChannels })),
    );
    t.strictSame(all.image, four.image, 'all noise channels');
    const channel = (image: Float32Array, c: number): Float32Array => image.slice(c * 4, (c + 1) * 4);
    assertClose(t, channel(three.image, 2), channel(all.image, 2), 1e-6, 'the third channel is guided');
    t.ok(maxRelativeError(channel(three.image, 3), channel(all.image, 3)) > 1e-3, 'the fourth is not, by default');
    const off = await run({});
    assertClose(t, channel(three.image, 3), channel(off.image, 3), 1e-6, 'it is the conditional’s');
  });
});

t.test('a seed names an image: interleaved, at any batch size and place in the batch', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const ddpm = new GaussianDiffusion({ respacing: '6' });
    const y = tensor([0, 1, 2, 1], { dtype: 'i64' });
    const start = (sampler: Sampler, seed: number, first = 0, count = 4): AsyncGenerator<SamplerStep> => {
      const key = { seed, firstSample: first };
      const labels = y.slice(0, first, first + count);
      return sampler(classToy(), randn([count, 4, 4, 4], key), { ...key, ddpm, y: labels, eta: 1, cfgScale: 2 });
    };
    for (const [name, sampler] of Object.entries(samplers)) {
      const alone = [await final(start(sampler, 7)), await final(start(sampler, 8))];
      t.ok(maxRelativeError(alone[0], alone[1]) > 0.1, `${name}: another seed, another image`);
      const pair = [start(sampler, 7), start(sampler, 8)];
      const together = await Promise.all(pair.map(final));
      t.strictSame(together, alone, `${name}: two at once`);
      for (const [first, count] of [
        [0, 1],
        [1, 2],
        [3, 1],
      ]) {
        const part = await final(start(sampler, 7, first, count));
        assertClose(t, part, alone[0].slice(first * 64, (first + count) * 64), 1e-6, `${name}: ${count} from ${first}`);
      }
    }
    // Eta 0 and DPM-Solver++ draw nothing on the way; the others do at every step but the last.
    for (const [name, eta, expected] of [
      ['ddpm', 0, [0, 1, 2, 3, 4]],
      ['ddim', 1, [0, 1, 2, 3, 4]],
      ['ddim', 0, []],
      ['dpm', 0, []],
    ] as const) {
      const drawn: number[] = [];
      const stepNoise = (step: number): Tensor => {
        drawn.push(step);
        return zeros([1, 4, 2, 2]);
      };
      await final(samplers[name](plainToy(), ones([1, 4, 2, 2]), { ddpm, eta, stepNoise }));
      t.strictSame(drawn, expected);
    }
  });
});

t.test('previews arrive while sampling runs', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    for (const sampler of Object.values(samplers)) {
      const asked: Promise<Float32Array>[] = [];
      const calls: number[] = [];
      const ddpm = new GaussianDiffusion({ respacing: '5' });
      for await (const { step, sample, denoised } of sampler(plainToy(asked), randn([1, 4, 2, 2], { seed: 1 }), {
        ddpm,
      })) {
        calls.push(asked.length);
        t.ok((await f32(denoised)).every(Number.isFinite));
        t.notOk(sample.requiresGrad || denoised.requiresGrad);
        if (step === 5) sample.dispose();
      }
      t.strictSame(calls, [1, 2, 3, 4, 5], 'one evaluation per step, none ahead');
    }
  });
});

t.test('an abort acts within a step, with the reason given, and leaves nothing', async (t) => {
  const noise = randn([1, 4, 4, 4], { seed: 1 });
  const ddpm = new GaussianDiffusion({ respacing: '10' });
  const before = (await settledMemory('cpu')).liveBuffers;
  for (const [name, sampler] of Object.entries(samplers)) {
    const reason = new Error('enough');
    const abort = new AbortController();
    let calls = 0;
    const network: GaussianNetwork = {
      forward: (...args) => {
        if (++calls === 3) abort.abort(reason);
        return plainToy().forward(...args);
      },
    };
    const steps: number[] = [];
    const run = async (): Promise<void> => {
      for await (const { step } of sampler(network, noise, { ddpm, signal: abort.signal })) steps.push(step);
    };
    await t.rejects(run, reason);
    t.strictSame([...steps, calls], [1, 2, 3], 'the step under way is finished, no other is begun');
    t.equal(memory('cpu').liveBuffers, before, `${name} aborted`);
    await t.rejects(run, reason);
    t.equal(calls, 3, 'aborted before the start: the network is not asked');
    for await (const { step } of sampler(plainToy(), noise, { ddpm })) if (step === 4) break;
    t.equal(memory('cpu').liveBuffers, before, `${name} broken off`);
    const broken: GaussianNetwork = {
      forward: (x) => {
        x.add(1);
        throw new RangeError('no network');
      },
    };
    await t.rejects(final(sampler(broken, noise, { ddpm })), new RangeError('no network'));
    t.equal(memory('cpu').liveBuffers, before, `${name}: a network that throws`);
    const unready: GaussianNetwork = {
      ...classToy(),
      conditionOn: () => {
        throw new RangeError('no condition');
      },
    };
    const y = zeros([1], { dtype: 'i64' });
    await t.rejects(final(sampler(unready, noise, { ddpm, y, cfgScale: 2 })), new RangeError('no condition'));
    y.dispose();
    t.equal(memory('cpu').liveBuffers, before, `${name}: a network that throws while it is conditioned`);
    for await (const { step, steps, sample } of sampler(plainToy(), noise, { ddpm })) {
      if (step < steps) continue;
      t.notOk(sample.isDisposed);
      queueMicrotask(() => sample.dispose());
      break;
    }
    await Promise.resolve();
    t.equal(memory('cpu').liveBuffers, before, `${name}: the last sample outlives a break`);
  }
  noise.dispose();
});

t.test('what does not fit is one typed error', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const noise = full([2, 4, 2, 2], 0.5);
    const y = tensor([0, 1], { dtype: 'i64' });
    const ddpm = new GaussianDiffusion({ respacing: '5' });
    const cases: [unknown, string, RegExp, GaussianNetwork?][] = [
      [{}, 'OptionError', /ddpm is missing, expected a GaussianDiffusion/],
      [
        { ddpm, y, cfgScale: 4 },
        'OptionError',
        /cfgScale is 4, but the model has no null class .*classDropoutProb > 0/,
        plainToy(),
      ],
      [{ ddpm, cfgScale: 4 }, 'OptionError', /cfgScale is 4, but there are no labels y/],
      [{ ddpm, y, cfgScale: Number.NaN }, 'OptionError', /cfgScale is NaN/],
      [{ ddpm, y, cfgScale: 2, scalePow: -1 }, 'OptionError', /scalePow is -1/],
      [{ ddpm, y, cfgScale: 2, guidedChannels: 0 }, 'OptionError', /guidedChannels is 0/],
      [{ ddpm, y, cfgScale: 2, guidanceInterval: [9, 1] }, 'OptionError', /guidanceInterval is \[9, 1\]/],
      [{ ddpm, y: ones([2]) }, 'DTypeError', /y is f32, expected i64/],
      [{ ddpm, y: y.slice(0, 0, 1) }, 'ShapeError', /y is \[1\], expected \[2\]/],
      [{ ddpm: new GaussianDiffusion({ learnSigma: false }), y }, 'ShapeError', /learnSigma false\) is \[2, 8, 2, 2\]/],
      [
        { ddpm, y, cfgScale: 2 },
        'ShapeError',
        /output for 2B labels is \[2, 8, 2, 2\], expected \[4, \*, \*, \*\]/,
        { ...plainToy(), nullClass: 3 },
      ],
    ];
    for (const [options, error, message, network = classToy()] of cases) {
      for (const sampler of Object.values(samplers)) {
        await assertFails(t, () => final(sampler(network, noise, options as SampleDdimOptions)), error, message);
      }
    }
    for (const eta of [-0.1, 1.1, Number.NaN]) {
      await assertFails(t, () => final(sampleDdim(classToy(), noise, { ddpm, eta })), 'OptionError', /eta is .*0 to 1/);
    }
    const flat = ones([4, 4]);
    await assertFails(t, () => final(sampleDdpm(classToy(), flat, { ddpm })), 'ShapeError', /noise is \[4, 4\]/);
  });
});
