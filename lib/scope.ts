/**
 * Who owns a tensor, whether gradients are being recorded, and in which precision. All follow the asynchronous call (AsyncLocalStorage),
 * so concurrent tasks never see each other's scope.
 *
 * A scope disposes every tensor made inside it when it ends, except those it returns, which pass to the scope around
 * it (or to the caller). The gradient tape holds its own references, so leaving a scope never breaks backward().
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { unknownName } from './errors.js';

/** What a scope owns. */
export interface Owned {
  /** The list of the scope that disposes it, if any does; set here alone. */
  owner?: Owned[];
  dispose(): void;
}

interface Frame {
  /** Everything that came to the scope; what has another `owner` by now was kept, or returned to the scope around. */
  readonly owned: Owned[] | undefined;
  readonly grad: boolean;
  readonly autocast: LowPrecision | undefined;
}

/** The dtypes that matrix units multiply at full speed. */
export type LowPrecision = 'bf16' | 'f16';
const autocastDTypes: readonly string[] = ['bf16', 'f16', 'f32'];

const outermost: Frame = { owned: undefined, grad: true, autocast: undefined };
const storage = new AsyncLocalStorage<Frame>();

/** Registers a new tensor with the scope that is current, if any. */
export function adopt(owned: Owned): void {
  own(owned, storage.getStore()?.owned);
}

function own(owned: Owned, owner: Owned[] | undefined): void {
  owned.owner = owner;
  owner?.push(owned);
}

/**
 * Takes tensors (one, or those in an array, plain object or Map) out of the current scope: they live until dispose() or garbage
 * collection. Returns its argument.
 */
export function keep<T>(value: T): T {
  const owner = storage.getStore()?.owned;
  if (owner) {
    forEachOwned(value, (owned) => {
      if (owned.owner === owner) owned.owner = undefined;
    });
  }
  return value;
}

/** Are operations recorded for backward() now? */
export function gradEnabled(): boolean {
  return (storage.getStore() ?? outermost).grad;
}

/**
 * Runs `fn`, then disposes all tensors it made but did not return (as a tensor, or in a returned array, plain object
 * or Map, however deep). Works for async functions too: the scope ends when the promise settles. Scopes nest: what one returns
 * belongs to the one around it.
 */
export function scope<T>(fn: () => T): T {
  const { owned: around, grad, autocast } = storage.getStore() ?? outermost;
  const owned: Owned[] = [];
  let result: T;
  try {
    result = storage.run({ owned, grad, autocast }, fn);
  } catch (error) {
    end(owned);
    throw error;
  }
  if (!(result instanceof Promise)) {
    end(owned, result, around);
    return result;
  }
  return result.then(
    (value) => {
      end(owned, value, around);
      return value;
    },
    (error) => {
      end(owned);
      throw error;
    },
  ) as T;
}

/** What the result holds of the scope's own passes to the scope around it; all else that is still its own is disposed. */
function end(owned: Owned[], result?: unknown, around?: Owned[]): void {
  forEachOwned(result, (returned) => {
    if (returned.owner === owned) own(returned, around);
  });
  for (const one of owned) if (one.owner === owned) one.dispose();
  owned.length = 0;
}

/** Runs `fn`, which may be asynchronous, without recording operations for backward(). Returns what it returns. */
export function noGrad<T>(fn: () => T): T {
  return withGrad(false, fn);
}

/** Runs `fn` with recording switched on (inside a noGrad) or off. */
export function withGrad<T>(grad: boolean, fn: () => T): T {
  const parent = storage.getStore() ?? outermost;
  return parent.grad === grad ? fn() : storage.run({ ...parent, grad }, fn);
}

/**
 * Runs `fn` in mixed precision: matrix products, convolutions and attention take their operands in `dtype` (weights stay f32
 * and are converted), and what feeds them is stored in it; sums, norms' statistics, losses and weight gradients stay f32.
 * 'f32' switches it off inside another autocast. Returns what `fn` returns.
 *
 * @throws {OptionError} Another dtype.
 */
export function autocast<T>(dtype: LowPrecision | 'f32', fn: () => T): T {
  if (!autocastDTypes.includes(dtype)) throw unknownName('autocast dtype', String(dtype), autocastDTypes);
  const parent = storage.getStore() ?? outermost;
  const wanted = dtype === 'f32' ? undefined : dtype;
  return parent.autocast === wanted ? fn() : storage.run({ ...parent, autocast: wanted }, fn);
}

/** The dtype of the autocast around the caller, if any. */
export function autocastDType(): LowPrecision | undefined {
  return (storage.getStore() ?? outermost).autocast;
}

/** `value` as something that `using` disposes with `dispose`; the method does not show when it is listed or compared. @internal */
export function withDispose<T extends object>(value: T, dispose: () => void): T & Disposable {
  return Object.defineProperty(value, Symbol.dispose, { value: dispose }) as T & Disposable;
}

function forEachOwned(value: unknown, visit: (owned: Owned) => void): void {
  if (typeof value !== 'object' || value === null) return;
  if (typeof (value as Partial<Owned>).dispose === 'function') visit(value as Owned);
  else if (Array.isArray(value)) for (const item of value) forEachOwned(item, visit);
  else if (value instanceof Map) for (const item of value.values()) forEachOwned(item, visit);
  else if (Object.getPrototypeOf(value) === Object.prototype)
    for (const item of Object.values(value)) forEachOwned(item, visit);
}
