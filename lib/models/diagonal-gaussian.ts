/** The encoder's answer: a normal distribution per latent element, N(mean, exp(logvar)), all independent. */
import { add, affine, mul, sub, unary } from '../ops/elementwise.js';
import { type RandomKey, randn } from '../ops/random.js';
import { sum } from '../ops/reduce.js';
import { adopt, keep, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';

/** A normal distribution per element, N(mean, exp(logvar)), all independent. Owned by a scope as one thing, with both tensors. */
export class DiagonalGaussian implements Disposable {
  /** Both of one shape [B, ...]; they belong to the distribution from then on. */
  constructor(
    /** The means. */
    readonly mean: Tensor,
    /** Natural logarithms of the variances. */
    readonly logvar: Tensor,
  ) {
    keep([mean, logvar]);
    adopt(this);
  }

  /** The most probable latents: the mean itself, not a copy. */
  mode(): Tensor {
    return this.mean;
  }

  /** The standard deviations exp(logvar / 2). */
  std(): Tensor {
    return scope(() => unary('exp', affine(this.logvar, 0.5, 0)));
  }

  /** mean + std noise; without a seed the default generator draws. Gradients reach mean and logvar. */
  sample(key: Partial<RandomKey> = {}): Tensor {
    return scope(() => {
      const { mean } = this;
      return add(mean, mul(this.std(), randn(mean.shape, { ...key, device: mean.device })));
    });
  }

  /** KL divergence from N(0, 1), summed over each sample's elements: (mean^2 + var - 1 - logvar) / 2 -> [B]. */
  kl(): Tensor {
    return scope(() => {
      const { mean, logvar } = this;
      const terms = sub(add(unary('square', mean), unary('exp', logvar)), add(logvar, 1));
      const axes = mean.shape.map((_, axis) => axis).slice(1);
      return affine(sum(terms, axes), 0.5, 0);
    });
  }

  /** Gives both tensors back. */
  dispose(): void {
    this.mean.dispose();
    this.logvar.dispose();
  }

  /** Called at the end of the block by `using posterior = …`: {@link DiagonalGaussian.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
