/**
 * Module: parameters and child modules under PyTorch's names.
 *
 * A subclass registers what it owns in its constructor, in state-dict order:
 *
 *     readonly weight = this.parameter('weight', init.xavierUniform([out, in]));
 *     readonly attn = this.child('attn', new TMSA(...));
 *
 * Parameters keep the layout the kernels want; a `Layout` converts to PyTorch's at the state dict and back.
 */
import { isFloat } from '../dtype.js';
import { DeviceError, DisposedError, DTypeError, OptionError, StateDictError } from '../errors.js';
import { checkKeys } from '../ops/check.js';
import { permute } from '../ops/index.js';
import { keep, noGrad, scope } from '../scope.js';
import { format, type Shape, sameShape } from '../shape.js';
import type { Tensor } from '../tensor.js';

/** Tensors by PyTorch name. */
export type StateDict = Record<string, Tensor>;

/** Axis orders between memory and state dict, of a parameter that keeps another layout than PyTorch's. */
export interface Layout {
  /** state = memory.permute(toState). */
  toState: readonly number[];
  /** memory = state.permute(fromState). */
  fromState: readonly number[];
}

/** Conv weights: [O, kh, kw, I] in memory, [O, I, kh, kw] in state dicts. @internal */
export const convLayout: Layout = { toState: [0, 3, 1, 2], fromState: [0, 2, 3, 1] };

interface Entry {
  tensor: Tensor;
  layout?: Layout;
  trainable: boolean;
}

/** Options of {@link Module.loadStateDict} and {@link Module.checkStateDict}. */
export interface StateDictOptions {
  /** Every key of the model must be there, and no other. Default true. */
  strict?: boolean;
}

/**
 * Parameters, buffers and child modules under PyTorch's names. A subclass registers what it owns in its constructor, in state-dict order, and
 * has a method forward(). Owns its tensors: dispose it, or make it with `using`.
 */
export abstract class Module implements Disposable {
  /** True between train() and eval(): dropout is active. New modules are in training mode. */
  training = true;
  private readonly entries = new Map<string, Entry>();
  private readonly children = new Map<string, Module>();
  private readonly derived = new Set<string>();

  /** Registers a trainable tensor; one in bf16 (see init.forLoading) is for inference and not trained. */
  protected parameter(name: string, tensor: Tensor, layout?: Layout): Tensor {
    const trainable = tensor.dtype === 'f32';
    tensor.requiresGrad = trainable;
    this.entries.set(name, { tensor: keep(tensor), layout, trainable });
    return tensor;
  }

  /** Registers a tensor that is saved and loaded but not trained. */
  protected buffer(name: string, tensor: Tensor): Tensor {
    this.entries.set(name, { tensor: keep(tensor), trainable: false });
    return tensor;
  }

  /** Registers a child module; its names are prefixed with `name` and a dot. */
  protected child<M extends Module>(name: string, module: M): M {
    this.children.set(name, module);
    return module;
  }

  /** A state-dict key that other implementations store and this one computes: accepted when loading, never saved. */
  protected acceptsDerived(name: string): void {
    this.derived.add(name);
  }

  /** Trainable tensors by name, in memory layout. */
  namedParameters(): Map<string, Tensor> {
    return new Map(
      [...this.walk()].filter(([, entry]) => entry.trainable).map(([name, entry]) => [name, entry.tensor]),
    );
  }

  /** Trainable tensors, in the order of the state dict. */
  parameters(): Tensor[] {
    return [...this.namedParameters().values()];
  }

  /** Number of trainable elements. */
  parameterCount(): number {
    return this.parameters().reduce((sum, tensor) => sum + tensor.size, 0);
  }

  /** All parameters and buffers under PyTorch's names and in its layouts. The tensors share memory where they can. */
  stateDict(): StateDict {
    return noGrad(() =>
      Object.fromEntries(
        [...this.walk()].map(([name, { tensor, layout }]) => [
          name,
          layout ? permute(tensor, layout.toState) : tensor.detach(),
        ]),
      ),
    );
  }

  /**
   * Copies a state dict into the parameters, in place (the optimizer's references stay valid), converting floats to the
   * parameter's dtype. Without `strict`, missing and unexpected keys are ignored. Nothing is changed when it throws.
   *
   * @throws {StateDictError} Lists every misshapen and, with `strict`, missing and unexpected key.
   * @throws {DTypeError} An integer tensor.
   * @throws {DeviceError} A tensor on another device than the model's.
   * @throws {DisposedError} A tensor that was given back.
   * @throws {OptionError} An unknown option.
   */
  loadStateDict(state: StateDict, options: StateDictOptions = {}): void {
    const entries = new Map(this.walk());
    this.checkStateDict(state, options);
    const found = [...entries].filter(([name]) => name in state);
    for (const [name, { tensor }] of found) {
      const { dtype, device, isDisposed } = state[name];
      if (isDisposed) throw new DisposedError(`loadStateDict: ${name} was disposed.`);
      if (!isFloat(dtype)) throw new DTypeError(`loadStateDict: ${name} is ${dtype}, expected a float dtype.`);
      if (device !== tensor.device) {
        throw new DeviceError(`loadStateDict: ${name} is on ${device}, the model on ${tensor.device}.`);
      }
    }
    noGrad(() => {
      for (const [name, { tensor, layout }] of found) {
        scope(() => {
          tensor.copyFrom(layout ? permute(state[name], layout.fromState) : state[name]);
        });
      }
    });
  }

  /** Keys of the state dict, in order. */
  stateNames(): string[] {
    return [...this.walk()].map(([name]) => name);
  }

  /** Throws as {@link Module.loadStateDict} would for a state dict of these shapes. */
  checkStateDict(state: Readonly<Record<string, { shape: Shape }>>, options: StateDictOptions = {}): void {
    checkKeys('loadStateDict', options, ['strict']);
    const { strict = true } = options;
    if (typeof strict !== 'boolean') {
      throw new OptionError(`loadStateDict: strict is ${String(strict)}, expected true or false.`);
    }
    const entries = new Map(this.walk());
    const derived = new Set(this.walkDerived());
    const missing = [...entries.keys()].filter((name) => !(name in state));
    const unexpected = Object.keys(state).filter((name) => !entries.has(name) && !derived.has(name));
    const misshapen: string[] = [];
    for (const [name, { tensor, layout }] of entries) {
      const given = state[name];
      const expected = stateShape(tensor.shape, layout);
      if (given && !sameShape(given.shape, expected))
        misshapen.push(`${name}: ${format(given.shape)}, expected ${format(expected)}`);
    }
    if (misshapen.length || (strict && (missing.length || unexpected.length))) {
      throw new StateDictError(describe({ missing, unexpected, misshapen }), { missing, unexpected, misshapen });
    }
  }

  /** Training mode (dropout on) for this module and all below it. Returns this. */
  train(mode = true): this {
    this.training = mode;
    for (const child of this.children.values()) child.train(mode);
    return this;
  }

  /** Inference mode. Returns this. */
  eval(): this {
    return this.train(false);
  }

  /** Gives all parameters, buffers and gradients back. Calling it again does nothing. */
  dispose(): void {
    for (const { tensor } of this.entries.values()) {
      tensor.grad?.dispose();
      tensor.dispose();
    }
    for (const child of this.children.values()) child.dispose();
  }

  /** Called at the end of the block by `using model = …`: {@link Module.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  private *walk(prefix = ''): IterableIterator<[string, Entry]> {
    for (const [name, entry] of this.entries) yield [prefix + name, entry];
    for (const [name, child] of this.children) yield* child.walk(`${prefix}${name}.`);
  }

  private *walkDerived(prefix = ''): IterableIterator<string> {
    for (const name of this.derived) yield prefix + name;
    for (const [name, child] of this.children) yield* child.walkDerived(`${prefix}${name}.`);
  }
}

/** An ordered list of modules, named 0, 1, 2, … as PyTorch's ModuleList. */
export class ModuleList<M extends Module> extends Module implements Iterable<M> {
  private readonly items: readonly M[];
  constructor(items: readonly M[]) {
    super();
    this.items = items.map((item, i) => this.child(String(i), item));
  }
  /** Number of modules. */
  get length(): number {
    return this.items.length;
  }
  /** Module i, from the end for a negative i. */
  at(i: number): M {
    return this.items.at(i) as M;
  }
  /** The modules in order. */
  [Symbol.iterator](): Iterator<M> {
    return this.items[Symbol.iterator]();
  }
}

function stateShape(shape: Shape, layout: Layout | undefined): Shape {
  return layout ? layout.toState.map((axis) => shape[axis]) : shape;
}

function describe(keys: { missing: string[]; unexpected: string[]; misshapen: string[] }): string {
  const parts = Object.entries(keys)
    .filter(([, names]) => names.length > 0)
    .map(([what, names]) => `${names.length} ${what} (${names.join(', ')})`);
  return `loadStateDict: the state dict is not this model's: ${parts.join('; ')}.`;
}
