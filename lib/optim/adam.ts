/**
 * Adam (Kingma & Ba, arXiv 1412.6980) and AdamW (Loshchilov & Hutter, arXiv 1711.05101) over all parameters in one
 * native call: one pass reads p, g, m, v and writes p, m, v; the same pass keeps a moving average and the weights' low-precision copies.
 */
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { keep } from '../scope.js';
import { format, sameShape } from '../shape.js';
import { type Tensor, zeros } from '../tensor.js';
import { Ema } from './ema.js';
import { namedParameters, type Parameters } from './parameters.js';

/** Options of {@link Adam} and {@link AdamW}. */
export interface AdamOptions {
  /** Learning rate, at least 0. Default 1e-3. May be changed between steps: {@link Adam.lr}. */
  lr?: number;
  /** Decay of the running means of the gradient and of its square, each from 0 to below 1. Default [0.9, 0.999]. */
  betas?: readonly [number, number];
  /** Added to the denominator, at least 0. Default 1e-8. */
  eps?: number;
  /** Adam: added to the gradient as weightDecay * p (L2), default 0. AdamW: p shrinks by lr * weightDecay, default 0.01. */
  weightDecay?: number;
  /** Count NaN and infinite elements of a gradient as 0, as EDM trains. Default false. */
  finiteOnly?: boolean;
}

const optionsSchema = schema((z, is) => {
  const beta = z.number().min(0).lt(1);
  return z.strictObject({
    lr: is.atLeastZero.default(1e-3),
    betas: z.tuple([beta, beta]).default([0.9, 0.999]),
    eps: is.atLeastZero.default(1e-8),
    weightDecay: is.atLeastZero.optional(),
    finiteOnly: z.boolean().default(false),
  } satisfies Fields<AdamOptions>);
});

/** What an optimizer remembers. Tensors are the live ones, in the parameters' own layout. */
export interface AdamState {
  /** Updates each parameter has had, by name. */
  steps: Record<string, number>;
  /** `m.NAME` and `v.NAME`: running means of the gradient and of its square. */
  tensors: Record<string, Tensor>;
}

/** Options of {@link Adam.step}. */
export interface StepOptions {
  /** One element, on the device: multiplies all gradients; where it is NaN the step changes nothing. What clipGradNorm() returns. */
  scale?: Tensor;
  /** Moving averages to update with the new weights, as `averages.update(decay)` after the step would, in the same pass over them. */
  ema?: { averages: Ema; decay: number };
}

const stepSchema = schema((z, is) =>
  z.strictObject({
    scale: is.tensor<Tensor>().optional(),
    ema: z
      .strictObject({ averages: is.value<Ema>((value) => value instanceof Ema, 'an Ema'), decay: is.share })
      .optional(),
  } satisfies Fields<StepOptions>),
);

interface Slot {
  readonly name: string;
  readonly parameter: Tensor;
  readonly m: Tensor;
  readonly v: Tensor;
  step: number;
}

/**
 * Adam (Kingma & Ba, arXiv 1412.6980) as PyTorch's torch.optim.Adam: a parameter without a gradient is left alone and its step does not
 * count. Owns its running means: dispose it, or make it with `using`.
 */
export class Adam implements Disposable {
  /** Learning rate of the next step; may be set. */
  lr: number;
  /** Is the weight decay that of AdamW? */
  protected readonly decoupled: boolean = false;
  private readonly slots: Slot[];
  private readonly betas: readonly [number, number];
  private readonly eps: number;
  private readonly weightDecay: number;
  private readonly finiteOnly: boolean;

  /**
   * @param parameters - Leaves with requiresGrad (f32): a list, or a map whose names the state goes by.
   * @throws {OptionError} No parameters; an option that is unknown or out of range.
   * @throws {DTypeError} A parameter that is not f32.
   */
  constructor(parameters: Parameters, options: AdamOptions = {}) {
    const { lr, betas, eps, weightDecay = 0, finiteOnly } = parseOptions(optionsSchema, options, new.target.name);
    this.lr = lr;
    this.betas = betas;
    this.eps = eps;
    this.weightDecay = weightDecay;
    this.finiteOnly = finiteOnly;
    this.slots = [...namedParameters(parameters, 'Adam')].map(([name, parameter]) => {
      const { shape, device } = parameter;
      const moment = (): Tensor => keep(zeros(shape, { device }));
      return { name, parameter, m: moment(), v: moment(), step: 0 };
    });
  }

  /**
   * One update of every parameter that has a gradient. Enqueued; nothing waits.
   *
   * @throws {OptionError} A learning rate below 0; an option that is unknown or out of range.
   */
  step(options: StepOptions = {}): void {
    const { scale, ema } = parseOptions(stepSchema, options, 'Adam.step');
    if (!(this.lr >= 0 && this.lr < Number.POSITIVE_INFINITY)) {
      throw new OptionError(`Adam: lr is ${this.lr}, expected a number of at least 0.`);
    }
    const averages = new Map(ema?.averages.byParameter);
    // One call for all that agree in these; most often two, of weights with a low-precision copy and without.
    const groups = new Map<string, Slot[]>();
    for (const slot of this.slots) {
      const { parameter } = slot;
      if (!parameter.grad) continue;
      slot.step++;
      const key = `${slot.step} ${averages.has(parameter)} ${parameter.lowered?.copy.dtype}`;
      const group = groups.get(key);
      if (group) group.push(slot);
      else groups.set(key, [slot]);
    }
    for (const group of groups.values()) {
      const into = group.flatMap(({ parameter }) => averages.get(parameter) ?? []);
      native.ops.adam(
        group.map(({ parameter }) => parameter.id),
        group.map(({ parameter }) => (parameter.grad as Tensor).id),
        group.map(({ m }) => m.id),
        group.map(({ v }) => v.id),
        into.map(({ id }) => id),
        group.flatMap(({ parameter }) => parameter.lowered?.copy.id ?? []),
        scale?.id ?? 0,
        group[0].step,
        this.lr,
        this.betas[0],
        this.betas[1],
        this.eps,
        this.weightDecay,
        this.decoupled ? 1 : 0,
        this.finiteOnly ? 1 : 0,
        ema?.decay ?? 0,
      );
      for (const average of into) average.written();
      for (const { parameter } of group) {
        averages.delete(parameter);
        const { lowered, writes } = parameter.written();
        if (lowered) lowered.writes = writes;
      }
    }
    ema?.averages.update(ema.decay, averages.keys()); // of parameters without a gradient
  }

  /** Disposes every gradient, so that the next backward() starts from none. */
  zeroGrad(): void {
    for (const { parameter } of this.slots) {
      parameter.grad?.dispose();
      parameter.grad = undefined;
    }
  }

  /** The live state, which stays the optimizer's; copy or save it before the next step(). */
  stateDict(): AdamState {
    const steps: Record<string, number> = {};
    const tensors: Record<string, Tensor> = {};
    for (const { name, m, v, step } of this.slots) {
      steps[name] = step;
      tensors[`m.${name}`] = m;
      tensors[`v.${name}`] = v;
    }
    return { steps, tensors };
  }

  /**
   * Copies a state in. Nothing has changed when it throws.
   *
   * @throws {OptionError} A parameter without a step count or a running mean.
   * @throws {ShapeError} A running mean of another shape.
   */
  loadStateDict({ steps, tensors }: AdamState): void {
    for (const { name, parameter } of this.slots) {
      if (!Number.isSafeInteger(steps[name]) || steps[name] < 0) {
        throw new OptionError(`Adam.loadStateDict: the state has no step count for parameter "${name}".`);
      }
      for (const key of [`m.${name}`, `v.${name}`]) {
        if (!tensors[key]) throw new OptionError(`Adam.loadStateDict: the state has no tensor "${key}".`);
        if (!sameShape(tensors[key].shape, parameter.shape)) {
          throw new ShapeError(
            `Adam.loadStateDict: "${key}" is ${format(tensors[key].shape)}, expected ${format(parameter.shape)}.`,
          );
        }
      }
    }
    for (const slot of this.slots) {
      slot.step = steps[slot.name];
      slot.m.copyFrom(tensors[`m.${slot.name}`]);
      slot.v.copyFrom(tensors[`v.${slot.name}`]);
    }
  }

  /** Frees the running means. The parameters stay. */
  dispose(): void {
    for (const { m, v } of this.slots) {
      m.dispose();
      v.dispose();
    }
  }

  /** Called at the end of the block by `using optimizer = …`: {@link Adam.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), as PyTorch's torch.optim.AdamW. */
export class AdamW extends Adam {
  /** True. */
  protected override readonly decoupled = true;

  /** As {@link Adam}'s, with a weightDecay of 0.01 by default. */
  constructor(parameters: Parameters, options: AdamOptions = {}) {
    super(parameters, options.weightDecay === undefined ? { ...options, weightDecay: 0.01 } : options);
  }
}
