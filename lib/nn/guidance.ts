/**
 * Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): eps = e_null + s (e_cond - e_null), on all channels
 * or on the first few, with a constant s or DiffiT's power-cosine scale, which is near 1 until late in sampling.
 */
import { OptionError } from '../errors.js';
import { add, affine, cos, mul, pow, sub } from '../ops/elementwise.js';
import { concat, reshape, slice } from '../ops/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { scope } from '../scope.js';
import { full, type Tensor } from '../tensor.js';

/** How the guidance scale goes with the timestep. */
export interface GuidanceSchedule {
  /** The scale s; 1 is the conditional model alone. */
  cfgScale: number;
  /** Exponent p of s(t) = 1 + (cfgScale - 1) (1 - cos(pi (1 - t / diffusionSteps)^p)) / 2; undefined: s is constant. */
  scalePow?: number;
  /** T, the timesteps of training. Default 1000. */
  diffusionSteps?: number;
}

const guidanceSchema = schema((z, is) =>
  z.strictObject({
    cfgScale: z.number(),
    scalePow: z.number().positive().optional(),
    diffusionSteps: is.count.default(1000),
  } satisfies Fields<GuidanceSchedule>),
);

/**
 * s(t) of timesteps t [B] -> [B].
 *
 * @throws {OptionError} An option that is missing, unknown or out of range.
 */
export function guidanceScale(t: Tensor, schedule: GuidanceSchedule): Tensor {
  const { cfgScale, scalePow, diffusionSteps } = parseOptions(guidanceSchema, schedule, 'guidanceScale');
  if (scalePow === undefined) return full(t.shape, cfgScale, { device: t.device });
  return scope(() => {
    const left = affine(t, -1 / diffusionSteps, 1);
    const angle = affine(pow(left, full(t.shape, scalePow, { device: t.device })), Math.PI, 0);
    return affine(cos(angle), -(cfgScale - 1) / 2, 1 + (cfgScale - 1) / 2);
  });
}

/** s(t) of one timestep; `schedule` was checked where it came from. */
export function guidanceScaleAt(t: number, schedule: GuidanceSchedule): number {
  const { cfgScale, scalePow, diffusionSteps = 1000 } = schedule;
  if (scalePow === undefined) return cfgScale;
  return 1 + ((cfgScale - 1) * (1 - Math.cos(Math.PI * (1 - t / diffusionSteps) ** scalePow))) / 2;
}

/**
 * Guides the first `channels` of conditional and unconditional [B, C, H, W] by scale [B]; the others (DiffiT: the
 * fourth noise channel and the variance) are the conditional's.
 *
 * @throws {OptionError} A number of channels that the tensors do not have.
 */
export function guide(conditional: Tensor, unconditional: Tensor, scale: Tensor, channels: number): Tensor {
  const all = conditional.shape[1];
  if (!(Number.isInteger(channels) && channels >= 1 && channels <= all)) {
    throw new OptionError(`guide: ${channels} channels to guide, expected 1 to the output's ${all}.`);
  }
  return scope(() => {
    const s = reshape(scale, [scale.size, 1, 1, 1]);
    const [cond, uncond] = [conditional, unconditional].map((x) => (channels < all ? slice(x, 1, 0, channels) : x));
    const guided = add(uncond, mul(sub(cond, uncond), s));
    return channels < all ? concat([guided, slice(conditional, 1, channels, all)], 1) : guided;
  });
}

/**
 * The same for a batch of both, as the released code returns it: output [2B, C, H, W], conditional first -> [2B, ...]
 * with the guided channels in both halves and the others as each half had them. Throws as {@link guide}.
 */
export function guideHalves(output: Tensor, scale: Tensor, channels: number): Tensor {
  const [both, all] = output.shape;
  return scope(() => {
    const [cond, uncond] = [slice(output, 0, 0, both / 2), slice(output, 0, both / 2, both)];
    const first = guide(cond, uncond, scale, channels);
    if (channels === all) return concat([first, first], 0);
    return concat([first, concat([slice(first, 1, 0, channels), slice(uncond, 1, channels, all)], 1)], 0);
  });
}
