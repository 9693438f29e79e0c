/**
 * A network at the fixed timesteps of a sampling run. What a block adds for the time token is linear in it, so the
 * parts of all steps and those of the samples' labels are made once, and a step only adds two rows.
 */
import { OptionError } from '../errors.js';
import { replayed } from '../graph.js';
import { add, affine } from '../ops/elementwise.js';
import { slice } from '../ops/index.js';
import { adopt, keep, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';

/** A condition split into what the step and what the sample brings. */
export interface ConditionParts {
  /** One row per step, [S, D]. */
  steps: Tensor;
  /** [B, D], or [1, D] for all samples. */
  samples?: Tensor;
}

/** A network at the fixed timesteps of a sampling run; see {@link LatentTransformer.conditionOn}. Owns its parts: dispose it, or let the scope it was made in do so. */
export class StepNetwork implements Disposable {
  /**
   * @param parts - The conditions; the step network owns them from then on.
   * @param run - The network on x and its conditions, [B, D] or [1, D] each.
   * @param network - Whose work it is: what replaying knows it by.
   */
  constructor(
    private readonly parts: readonly ConditionParts[],
    private readonly run: (x: Tensor, conditions: readonly Tensor[]) => Tensor,
    private readonly network: object,
  ) {
    keep(parts);
    adopt(this);
  }

  /** x [B, C, S, S] at timesteps[step] -> as forward() of the model. Throws OptionError for a step that is not there. */
  forward(x: Tensor, step: number): Tensor {
    const steps = this.parts[0].steps.shape[0];
    if (!Number.isInteger(step) || step < 0 || step >= steps) {
      throw new OptionError(`StepNetwork: step is ${step}, expected 0 to ${steps - 1}.`);
    }
    return scope(() => {
      const conditions = this.parts.map(({ steps, samples }) => {
        const row = slice(steps, 0, step, step + 1);
        return samples ? add(samples, row) : affine(row, 1, 0); // in a place that is the same at every step
      });
      return replayed(this.network, x.device, () => this.run(x, conditions));
    });
  }

  /** Gives the conditions back. */
  dispose(): void {
    for (const { steps, samples } of this.parts) {
      steps.dispose();
      samples?.dispose();
    }
  }

  /** Called at the end of the block by `using network = …`: {@link StepNetwork.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
