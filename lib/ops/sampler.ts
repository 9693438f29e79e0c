/** One step of a sampler as one operation: what lib/diffusion does between two evaluations of the network. */
import { native } from '../native.js';
import type { Shape } from '../shape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkShapeOf, checkTensors } from './check.js';
import type { RandomKey } from './random.js';

/** F = U + scale (F - U) on the first `channels` channels, U being the second half of an output of [2B, ...]. */
export interface Guidance {
  scale: number;
  channels: number;
}

/** Of the formula at {@link samplerStep}. */
export interface SamplerStepOptions {
  guidance?: Guidance;
  /** D = denoised[0] x + denoised[1] F. Default: D is 0 and not wanted. */
  denoised?: readonly [x: number, f: number];
  /** Clamp D to [-1, 1]. */
  clip?: boolean;
  /** y = next[0] x + next[1] D + ... */
  next: readonly [x: number, d: number];
  /** ... + each coefficient times its tensor. */
  plus?: readonly (readonly [number, Tensor])[];
  /** ... + sigma exp(spread S) z: z is the tensor, or the standard normal numbers of the key. */
  noise?: { sigma: number; spread?: number; from: Tensor | Required<RandomKey> };
  /** Give also this times y. */
  scaledBy?: number;
}

/**
 * One step of a sampler from the state x [B, C, H, W] and the network's output (f32, bf16 or f16; [B, C or more, H, W], twice as many
 * with guidance): the denoised image D, the next state y, and y scaled. F stands for the output's first C channels, guided; S for its
 * second C channels. Not recorded.
 */
export function samplerStep(
  x: Tensor,
  output: Tensor,
  { guidance, denoised, clip = false, next, plus = [], noise, scaledBy }: SamplerStepOptions,
): { sample: Tensor; denoised?: Tensor; scaled?: Tensor } {
  const given = noise?.from instanceof Tensor ? noise.from : undefined;
  const key = given || !noise ? { seed: 0, stream: 0, firstSample: 0 } : (noise.from as Required<RandomKey>);
  const [a, b] = plus;
  const op = 'samplerStep';
  checkTensors(op, { x, a: a?.[1], b: b?.[1], noise: given });
  checkFloats(op, { output }, x.device);
  const [batch, channels, ...plane] = x.shape;
  const { sigma = 0, spread = 0 } = noise ?? {};
  const shape: Shape = [guidance ? 2 * batch : batch, spread === 0 ? -1 : 2 * channels, ...plane];
  checkShapeOf(op, 'the output', output, shape);
  for (const tensor of [a?.[1], b?.[1], given]) checkShapeOf(op, 'a term', tensor, x.shape);
  const make = (): Tensor => Tensor.empty(x.shape, 'f32', x.device, op);
  const sample = make();
  const d = denoised && make();
  const scaled = scaledBy === undefined ? undefined : make();
  native.ops.sampler_step(
    x.id,
    output.id,
    a?.[1].id ?? 0,
    b?.[1].id ?? 0,
    given?.id ?? 0,
    sample.id,
    d?.id ?? 0,
    scaled?.id ?? 0,
    guidance?.channels ?? 0,
    guidance?.scale ?? 1,
    ...(denoised ?? [0, 0]),
    Number(clip),
    ...next,
    a?.[0] ?? 0,
    b?.[0] ?? 0,
    sigma,
    spread,
    scaledBy ?? 1,
    key.seed,
    key.stream,
    key.firstSample,
  );
  return { sample, denoised: d, scaled };
}
