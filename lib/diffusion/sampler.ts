/** What every sampler yields, and the loop they share: sampleX(model, noise, options) is an async iterable of steps. */
import { Pace } from '../device.js';
import { noGrad, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';

/** What a sampler yields after each step. */
export interface SamplerStep {
  /** 1 after the first step, `steps` after the last. */
  step: number;
  /** How many steps there are. */
  steps: number;
  /** The state after this step, shape of the noise; after the last step the image. */
  sample: Tensor;
  /** The model's current idea of the clean image: a preview. */
  denoised: Tensor;
}

/** What one step makes. */
export interface Advance {
  sample: Tensor;
  denoised: Tensor;
  /** What the next step wants besides; lives as long as these. */
  input?: Tensor;
}

/**
 * `steps` times `advance(x, i, what the step before made)`, from `start()`. Yields after every step; the yielded tensors
 * live until the next iteration, the last `sample` belongs to the caller. Rejects with the signal's reason when aborted,
 * at most one step later; nothing stays allocated.
 */
export async function* runSampler(
  start: () => Tensor,
  steps: number,
  advance: (x: Tensor, step: number, before?: Advance) => Advance,
  signal?: AbortSignal,
): AsyncGenerator<SamplerStep> {
  signal?.throwIfAborted();
  let sample = noGrad(start);
  let before: Advance | undefined;
  let handedOver = false;
  const pace = new Pace(sample.device);
  try {
    for (let i = 0; i < steps; i++) {
      const next = noGrad(() => scope(() => advance(sample, i, before)));
      sample.dispose();
      before?.denoised.dispose();
      before?.input?.dispose();
      before = next;
      sample = next.sample;
      handedOver = i + 1 === steps;
      // The device may be one step behind: it works on this one while JavaScript prepares the next. An abort acts within a step.
      await (handedOver ? pace.catchUp() : pace.turn());
      signal?.throwIfAborted();
      yield { step: i + 1, steps, sample, denoised: next.denoised };
    }
  } finally {
    pace.dispose();
    before?.denoised.dispose();
    before?.input?.dispose();
    if (!handedOver) sample.dispose();
  }
}
