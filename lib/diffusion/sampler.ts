/** What every sampler yields, and the loop they share: sampleX(model, noise, options) is an async iterable of steps. */
import { synchronize } from '../device.js';
import { noGrad, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';

export interface SamplerStep {
  /** 1 after the first step, `steps` after the last. */
  step: number;
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
}

/**
 * `steps` times `advance(x, i, denoised of the step before)`, from `start()`. Yields after every step; the yielded tensors
 * live until the next iteration, the last `sample` belongs to the caller. Rejects with the signal's reason when aborted,
 * at most one step later; nothing stays allocated.
 */
export async function* runSampler(
  start: () => Tensor,
  steps: number,
  advance: (x: Tensor, step: number, previous?: Tensor) => Advance,
  signal?: AbortSignal,
): AsyncGenerator<SamplerStep> {
  signal?.throwIfAborted();
  let sample = noGrad(start);
  let denoised: Tensor | undefined;
  let handedOver = false;
  try {
    for (let i = 0; i < steps; i++) {
      const next = noGrad(() => scope(() => advance(sample, i, denoised)));
      sample.dispose();
      denoised?.dispose();
      ({ sample, denoised } = next);
      // Let the device catch up once a step, so that an abort acts within one step.
      await synchronize(sample.device);
      signal?.throwIfAborted();
      handedOver = i + 1 === steps;
      yield { step: i + 1, steps, ...next };
    }
  } finally {
    denoised?.dispose();
    if (!handedOver) sample.dispose();
  }
}
