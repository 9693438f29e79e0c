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
  dispose(): void;
}

interface Frame {
  readonly owned: Set<Owned> | undefined;
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
  storage.getStore()?.owned?.add(owned);
}

/**
 * Takes tensors (one, or those in an array, plain object or Map) out of the current scope: they live until dispose() or garbage
 * collection. Returns its argument.
 */
export function keep<T>(value: T): T {
  const owned = storage.getStore()?.owned;
  if (owned) forEachOwned(value, (tensor) => owned.delete(tensor));
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
  const parent = storage.getStore() ?? outermost;
  const frame: Frame = { ...parent, owned: new Set() };
  return settle(frame, fn, (result) => end(frame, parent, result));
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

function settle<T>(frame: Frame, fn: () => T, finish: (result: unknown) => void): T {
  let result: T;
  try {
    result = storage.run(frame, fn);
  } catch (error) {
    finish(undefined);
    throw error;
  }
  if (!(result instanceof Promise)) {
    finish(result);
    return result;
  }
  return result.then(
    (value) => {
      finish(value);
      return value;
    },
    (error) => {
      finish(undefined);
      throw error;
    },
  ) as T;
}

function end(frame: Frame, parent: Frame, result: unknown): void {
  const owned = frame.owned as Set<Owned>;
  forEachOwned(result, (tensor) => {
    if (owned.delete(tensor)) parent.owned?.add(tensor);
  });
  for (const tensor of owned) tensor.dispose();
  owned.clear();
}

function forEachOwned(value: unknown, visit: (owned: Owned) => void): void {
  if (typeof value !== 'object' || value === null) return;
  if (typeof (value as Partial<Owned>).dispose === 'function') visit(value as Owned);
  else if (Array.isArray(value)) for (const item of value) forEachOwned(item, visit);
  else if (value instanceof Map) for (const item of value.values()) forEachOwned(item, visit);
  else if (Object.getPrototypeOf(value) === Object.prototype)
    for (const item of Object.values(value)) forEachOwned(item, visit);
}
