/**
 * Noise schedules of discrete-time diffusion: betas (linear, Ho et al. 2020; cosine, Nichol & Dhariwal 2021,
 * arXiv 2102.09672), which timesteps a respaced process keeps, and loss weights by signal-to-noise ratio.
 * All in float64 on the host; index i is timestep i.
 */
import { OptionError } from '../errors.js';
import { checkInteger } from '../ops/check.js';

/** Betas rising evenly from 1e-4 to 0.02 for 1000 steps; for another number both ends are scaled by 1000 / steps. Throws OptionError unless `steps` is an integer above 20. */
export function linearBetas(steps: number): number[] {
  if (!Number.isInteger(steps) || steps <= 20) {
    throw new OptionError(`linearBetas: steps is ${steps}, expected an integer above 20, or a beta would reach 1.`);
  }
  const [first, last] = [0.1 / steps, 20 / steps];
  const rise = (last - first) / (steps - 1);
  return Array.from({ length: steps }, (_, i) => (i < steps - 1 ? first + i * rise : last));
}

/** Betas whose alphasCumprod falls as cos^2((i / steps + 0.008) / 1.008 pi / 2), each at most 0.999 (Nichol & Dhariwal 2021). Throws OptionError
 * unless `steps` is an integer of at least 2. */
export function cosineBetas(steps: number): number[] {
  if (!Number.isInteger(steps) || steps < 2) {
    throw new OptionError(`cosineBetas: steps is ${steps}, expected an integer of at least 2.`);
  }
  const alphaBar = (i: number): number => Math.cos((((i / steps + 0.008) / 1.008) * Math.PI) / 2) ** 2;
  return Array.from({ length: steps }, (_, i) => Math.min(1 - alphaBar(i + 1) / alphaBar(i), 0.999));
}

/**
 * The timesteps of 0 .. steps - 1 that a respaced process keeps, ascending, as guided-diffusion counts them:
 * - "" keeps all;
 * - "ddimN" keeps every k-th from 0, with the smallest whole k that gives exactly N;
 * - "N" or "N1,N2,...": the timesteps are cut into as many sections of even size (the first ones one longer), and N_j
 *   are taken from section j, evenly from its first to its last, rounded half to even.
 *
 * @throws {OptionError} Any other string, more timesteps than a section has, an N that no whole k gives; steps that are no integer above 0.
 */
export function respace(steps: number, respacing: string): number[] {
  checkInteger('respace', 'steps', steps, 1);
  const wanted = `respacing "${respacing}"`;
  if (respacing === '') return Array.from({ length: steps }, (_, i) => i);
  const ddim = /^ddim(\d+)$/.exec(respacing);
  if (ddim) {
    const count = Number(ddim[1]);
    for (let stride = 1; stride < steps; stride++) {
      if (Math.ceil(steps / stride) === count) return Array.from({ length: count }, (_, i) => i * stride);
    }
    throw new OptionError(`${wanted}: no whole stride takes exactly ${count} of ${steps} timesteps.`);
  }
  if (!/^\d+(,\d+)*$/.test(respacing)) {
    throw new OptionError(`${wanted}: expected a count ("250"), counts per section ("10,15,20"), or "ddim50".`);
  }
  const counts = respacing.split(',').map(Number);
  const kept: number[] = [];
  let start = 0;
  for (const [j, count] of counts.entries()) {
    const size = Math.floor(steps / counts.length) + (j < steps % counts.length ? 1 : 0);
    if (count > size) throw new OptionError(`${wanted}: ${count} timesteps wanted of a section of ${size}.`);
    const stride = count > 1 ? (size - 1) / (count - 1) : 1;
    // Summed up, not multiplied: the original's rounding decides between neighbours.
    for (let i = 0, at = 0; i < count; i++, at += stride) kept.push(start + roundHalfEven(at));
    start += size;
  }
  return kept;
}

function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
}

/**
 * Weights min(SNR, gamma) / SNR of the noise-prediction loss, SNR = alphasCumprod / (1 - alphasCumprod): timesteps with
 * little noise count less (Hang et al. 2023, arXiv 2303.09556). One weight per timestep; default gamma 5.
 *
 * @throws {OptionError} A gamma that is not above 0.
 */
export function minSnrWeights(alphasCumprod: readonly number[], gamma = 5): number[] {
  if (!(gamma > 0)) throw new OptionError(`minSnrWeights: gamma is ${gamma}, expected a number above 0.`);
  return alphasCumprod.map((a) => Math.min(1, (gamma * (1 - a)) / a));
}
