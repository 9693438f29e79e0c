/**
 * A sampler of your own, written with the public operations: Euler's and Heun's step, ancestral if you like, beside the one of the library.
 *
 *     npx tsx custom-sampler.ts [--out samplers.png] [--steps 12] [--seed 1]
 *
 * Without noise added back (eta 0) and in second order it is Algorithm 2 of Karras et al. (2022), which is what diffusion.sampleEdm computes: both
 * agree up to rounding. With eta 1 it is an ancestral sampler, as Song et al. (2021) and k-diffusion have it: a step goes down to
 * sigmaDown, and noise of sigmaUp brings it back up to the next level. Writes a grid, a row per sampler, the same initial noise in each.
 */
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { diffusion, full, io, models, noGrad, randn, scope, synchronize, type Tensor, tensor, train } from 'diffit';

export interface AncestralOptions {
  /** Noise levels, from 80 down to 0.002. */
  steps?: number;
  /** i64 [B], for a class-conditional network. */
  labels?: Tensor;
  /** Classifier-free guidance; 1: none. */
  cfgScale?: number;
  /** Share of the noise that is fresh in every step: 0 deterministic, 1 fully ancestral. */
  eta?: number;
  /** 1: Euler, one evaluation a step; 2: Heun, two. */
  order?: 1 | 2;
  /** Of the fresh noise; step i draws stream i + 1, stream 0 being the initial noise. */
  seed?: number;
  signal?: AbortSignal;
}

/** From standard normal noise [B, C, H, W] to images in [-1, 1]. Every sampler of the library has this shape: a step, and what it made. */
export async function* sampleAncestral(
  network: diffusion.EdmNetwork,
  noise: Tensor,
  { steps = 18, labels, cfgScale = 1, eta = 1, order = 1, seed = 0, signal }: AncestralOptions = {},
): AsyncGenerator<diffusion.SamplerStep> {
  const sigmas = diffusion.edmSigmas(steps); // steps levels and a final 0
  const { device, shape } = noise;
  const denoised = (x: Tensor, sigma: number): Tensor =>
    guided(network, x, full([shape[0]], sigma, { device }), labels, cfgScale);

  /** One step; a scope frees all that it makes on the way but what is returned. */
  const advance = (x: Tensor, i: number): { sample: Tensor; clean: Tensor } =>
    scope(() => {
      const [sigma, next] = [sigmas[i], sigmas[i + 1]];
      const { up, down } = ancestralSigmas(sigma, next, eta);
      const clean = denoised(x, sigma);
      const slope = x.sub(clean).div(sigma); // dx/dsigma of the probability flow (Eq. 1 of the paper)
      let sample = x.add(slope.mul(down - sigma));
      if (order === 2 && down > 0) {
        const slopeThere = sample.sub(denoised(sample, down)).div(down);
        sample = x.add(slope.add(slopeThere).mul((down - sigma) / 2));
      }
      if (up > 0) sample = sample.add(randn(shape, { seed, stream: i + 1, device }).mul(up));
      return { sample, clean };
    });

  let x = noGrad(() => noise.mul(sigmas[0]));
  let finished = false;
  try {
    for (let i = 0; i < steps; i++) {
      signal?.throwIfAborted();
      const { sample, clean } = noGrad(() => advance(x, i));
      x.dispose();
      x = sample;
      finished = i + 1 === steps;
      try {
        await synchronize(device); // or JavaScript would enqueue all steps at once, and nothing could stop them
        yield { step: i + 1, steps, sample, denoised: clean };
      } finally {
        clean.dispose();
      }
    }
  } finally {
    if (!finished) x.dispose(); // the last one belongs to the caller
  }
}

/** D(x; sigma), or with guidance D_null + cfgScale (D_label - D_null). */
function guided(
  network: diffusion.EdmNetwork,
  x: Tensor,
  sigma: Tensor,
  labels: Tensor | undefined,
  cfgScale: number,
): Tensor {
  const conditional = diffusion.denoise(network, x, sigma, { labels });
  if (cfgScale === 1 || !labels || network.nullClass === undefined) return conditional;
  const nothing = full(labels.shape, network.nullClass, { dtype: 'i64', device: labels.device });
  const unconditional = diffusion.denoise(network, x, sigma, { labels: nothing });
  return unconditional.add(conditional.sub(unconditional).mul(cfgScale));
}

/** How far down a step goes, and how much noise brings it up to `next` again: up^2 + down^2 = next^2. */
function ancestralSigmas(sigma: number, next: number, eta: number): { up: number; down: number } {
  const variance = (next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2;
  const up = Math.min(next, eta * Math.sqrt(variance));
  return { up, down: Math.sqrt(next ** 2 - up ** 2) };
}

/** The last sample of a sampler, which is the image. */
async function lastOf(steps: AsyncGenerator<diffusion.SamplerStep>): Promise<Tensor> {
  let image: Tensor | undefined;
  for await (const { sample } of steps) image = sample;
  return image as Tensor;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      out: { type: 'string', default: 'samplers.png' },
      steps: { type: 'string', default: '12' },
      seed: { type: 'string', default: '1' },
    },
  });
  const { model } = await train.loadModel(train.shippedWeights('mnist'));
  if (!(model instanceof models.ImageDiffiT)) throw new Error('The shipped weights are of an image-space model.');
  const { inChannels, imgResolution: side, numClasses } = model.config;
  const seed = Number(values.seed);
  const noise = randn([numClasses, inChannels, side, side], { seed, stream: 0 });
  const labels = tensor(BigInt64Array.from({ length: numClasses }, (_, i) => BigInt(i)));
  const options = { steps: Number(values.steps), labels, cfgScale: 1.5, seed };

  const samplers: [name: string, evaluations: number, run: () => AsyncGenerator<diffusion.SamplerStep>][] = [
    ['built-in Heun', 2 * options.steps - 1, () => diffusion.sampleEdm(model, noise, options)],
    ['own Heun', 2 * options.steps - 1, () => sampleAncestral(model, noise, { ...options, order: 2, eta: 0 })],
    ['own Euler', options.steps, () => sampleAncestral(model, noise, { ...options, order: 1, eta: 0 })],
    ['own Euler, ancestral', options.steps, () => sampleAncestral(model, noise, { ...options, order: 1, eta: 1 })],
    [
      'own Heun, ancestral',
      2 * options.steps - 1,
      () => sampleAncestral(model, noise, { ...options, order: 2, eta: 1 }),
    ],
  ];
  const rows: Uint8Array[] = [];
  let reference: Float32Array | undefined;
  for (const [name, evaluations, run] of samplers) {
    const started = performance.now();
    const image = await lastOf(run());
    const numbers = (await image.data()) as Float32Array;
    reference ??= numbers;
    const expected = reference;
    const difference = numbers.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i])), 0);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(`${name}: ${evaluations} evaluations, ${seconds} s, differs by ${difference.toExponential(1)} at most`);
    rows.push(await train.toPixels(image));
    image.dispose();
  }
  const shape = [samplers.length * numClasses, side, side, inChannels];
  await io.saveImage(values.out, io.imageGrid(Buffer.concat(rows), shape, { columns: numClasses, scale: 2 }));
  console.log(`${values.out}: a row per sampler`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main();
