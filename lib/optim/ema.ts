/** Exponential moving averages of weights: one pass over all of them, and EDM's rule for the decay. */
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { keep } from '../scope.js';
import { format, sameShape } from '../shape.js';
import { Tensor } from '../tensor.js';
import { namedParameters, type Parameters } from './parameters.js';

/**
 * Exponential moving averages of parameters. By default it holds its own copies; given `averages` (the same names and shapes: the
 * parameters of a second model), it writes there and those stay their owner's. Dispose it, or make it with `using`.
 */
export class Ema implements Disposable {
  /** By parameter name. */
  readonly averages: ReadonlyMap<string, Tensor>;
  /** The averages by parameter. */
  readonly byParameter: ReadonlyMap<Tensor, Tensor>;
  private readonly owned: boolean;

  /**
   * The averages start as the parameters when they are its own, and as they are when they were given.
   *
   * @throws {OptionError} No parameters, or no average for one.
   * @throws {ShapeError} An average of another shape.
   * @throws {DTypeError} A tensor that is not f32.
   */
  constructor(parameters: Parameters, averages?: Parameters) {
    const named = namedParameters(parameters, 'Ema');
    this.owned = averages === undefined;
    const into = averages && namedParameters(averages, 'Ema');
    this.averages = new Map([...named].map(([name, tensor]) => [name, into ? at(into, name, tensor) : copyOf(tensor)]));
    this.byParameter = new Map([...named].map(([name, tensor]) => [tensor, this.averages.get(name) as Tensor]));
  }

  /**
   * average = parameter + decay (average - parameter), of all or of `parameters`. Enqueued; nothing waits. An optimizer's step() can
   * do it in its own pass: {@link StepOptions.ema}.
   *
   * @throws {OptionError} A decay outside 0 to 1.
   */
  update(decay: number, parameters: Iterable<Tensor> = this.byParameter.keys()): void {
    checkDecay(decay);
    const from = [...parameters];
    const into = from.map((parameter) => this.byParameter.get(parameter) as Tensor);
    if (into.length === 0) return;
    native.ops.ema(
      into.map(({ id }) => id),
      from.map(({ id }) => id),
      decay,
    );
    for (const average of into) average.written();
  }

  /** Sets every average to its parameter. */
  reset(): void {
    for (const [parameter, average] of this.byParameter) average.copyFrom(parameter);
  }

  /** Frees the averages this object made. */
  dispose(): void {
    if (this.owned) for (const average of this.averages.values()) average.dispose();
  }

  /** Called at the end of the block by `using averages = …`: {@link Ema.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What {@link edmEmaDecay} goes by. */
export interface EdmEmaOptions {
  /** Images after which a weight's share in the average has halved, at least 0. EDM: 500,000. */
  halfLifeImages: number;
  /** Early on the half-life is at most this part of the images seen; null: no ramp-up. Default 0.05. */
  rampUp?: number | null;
}

const edmSchema = schema((z, is) =>
  z.strictObject({
    halfLifeImages: is.atLeastZero,
    rampUp: z.union([z.number().positive(), z.null()]).default(0.05),
  } satisfies Fields<EdmEmaOptions>),
);

/**
 * EDM's decay for an update after `batch` more images on top of `images` (Karras et al. 2022, appendix F.2); with ramp-up 0 at the first.
 *
 * @throws {OptionError} An option that is missing, unknown or out of range.
 */
export function edmEmaDecay(images: number, batch: number, options: EdmEmaOptions): number {
  const { halfLifeImages, rampUp } = parseOptions(edmSchema, options, 'edmEmaDecay');
  const halfLife = rampUp === null ? halfLifeImages : Math.min(halfLifeImages, images * rampUp);
  return halfLife > 0 ? 0.5 ** (batch / halfLife) : 0;
}

function checkDecay(decay: number): void {
  if (!(decay >= 0 && decay <= 1)) throw new OptionError(`Ema: decay is ${decay}, expected 0 to 1.`);
}

function copyOf(source: Tensor): Tensor {
  return keep(Tensor.empty(source.shape, 'f32', source.device, 'Ema')).copyFrom(source);
}

function at(averages: Map<string, Tensor>, name: string, { shape }: Tensor): Tensor {
  const average = averages.get(name);
  if (!average) throw new OptionError(`Ema: there is no average for parameter "${name}".`);
  if (!sameShape(average.shape, shape)) {
    throw new ShapeError(`Ema: the average of "${name}" is ${format(average.shape)}, expected ${format(shape)}.`);
  }
  return average;
}
