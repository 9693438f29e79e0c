/**
 * The errors of the package. Each has a stable `code`; messages name what was wrong and what was expected, in one
 * sentence, and are safe to show to a user.
 */

import type { MemoryOwner } from './device.js';
import type { DType } from './dtype.js';
import type { MemoryStats } from './native.js';

/** Base class: everything this package throws on purpose. */
export class DiffitError extends Error {
  /** Stays the same from version to version: `DIFFIT_SHAPE`, `DIFFIT_OPTION`, …; messages may change. */
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** Shapes that do not fit an operation or a state dict. Code `DIFFIT_SHAPE`. */
export class ShapeError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_SHAPE', message);
  }
}

/** A dtype an operation does not take. Code `DIFFIT_DTYPE`. */
export class DTypeError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_DTYPE', message);
  }
}

/** An unknown, missing or out-of-range option or argument; the message names it, what was given and what was expected. Code `DIFFIT_OPTION`. */
export class OptionError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_OPTION', message);
  }
}

/** A device that cannot be had, or tensors of different devices in one operation. Code `DIFFIT_DEVICE`. */
export class DeviceError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_DEVICE', message, options);
  }
}

/** What {@link OutOfMemoryError} tells of the tensor that there was no memory for. */
export interface MemoryRequest {
  /** What was to make it: `matmul`, `zeros`, `backward`, … */
  op: string;
  /** Sizes of its axes. */
  shape: readonly number[];
  /** Type of its elements. */
  dtype: DType;
  /** Bytes of all of them. */
  bytes: number;
  /** Where it was to be. */
  device: string;
}

/**
 * Device memory, or the cap on it, is exhausted, and garbage collection did not help; the process can go on after freeing some. Code
 * `DIFFIT_OUT_OF_MEMORY`.
 */
export class OutOfMemoryError extends DiffitError {
  /** The tensor; missing where an operation lacked scratch memory. */
  readonly request?: MemoryRequest;
  /** What the device held then. */
  readonly memory?: MemoryStats;
  /** What most of that was, largest first. */
  readonly owners: readonly MemoryOwner[];
  constructor(
    message: string,
    options: ErrorOptions & { request?: MemoryRequest; memory?: MemoryStats; owners?: readonly MemoryOwner[] } = {},
  ) {
    const { request, memory, owners = [], ...rest } = options;
    super('DIFFIT_OUT_OF_MEMORY', message, rest);
    this.request = request;
    this.memory = memory;
    this.owners = owners;
  }
}

/** A tensor used after dispose(), or after the scope that owned it ended; or a data loader after its dispose(). Code `DIFFIT_DISPOSED`. */
export class DisposedError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_DISPOSED', message);
  }
}

/** backward() on something that has no gradient graph, or twice on the same one. Code `DIFFIT_AUTOGRAD`. */
export class AutogradError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_AUTOGRAD', message);
  }
}

/** A state dict whose keys or shapes are not the model's; lists all of them. Code `DIFFIT_STATE_DICT`. */
export class StateDictError extends DiffitError {
  /** Keys of the model that the state dict does not have. */
  readonly missing: readonly string[];
  /** Keys of the state dict that the model does not have. */
  readonly unexpected: readonly string[];
  /** Tensors of another shape, as `name: [2, 3], expected [2, 4]`. */
  readonly misshapen: readonly string[];
  constructor(message: string, keys: { missing: string[]; unexpected: string[]; misshapen: string[] }) {
    super('DIFFIT_STATE_DICT', message);
    this.missing = keys.missing;
    this.unexpected = keys.unexpected;
    this.misshapen = keys.misshapen;
  }
}

/** A file that is not what it claims to be: truncated, corrupt, or of another format. Code `DIFFIT_FILE_FORMAT`. */
export class FileFormatError extends DiffitError {
  /** The file. */
  readonly path: string;
  constructor(message: string, options: { path: string; cause?: unknown }) {
    super('DIFFIT_FILE_FORMAT', message, { cause: options.cause });
    this.path = options.path;
  }
}

/** A file or folder that cannot be read or written: missing, not permitted, disk full. Code `DIFFIT_FILE`. */
export class FileError extends DiffitError {
  /** The file or folder. */
  readonly path: string;
  constructor(message: string, options: { path: string; cause?: unknown }) {
    super('DIFFIT_FILE', message, { cause: options.cause });
    this.path = options.path;
  }
}

/** A data set that is missing, empty or inconsistent. Code `DIFFIT_DATA`. */
export class DataError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_DATA', message, options);
  }
}

/** A failed run: a checkpoint of another run, no data, and the like. Code `DIFFIT_TRAIN`. */
export class TrainError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_TRAIN', message, options);
  }
}

/** A training step whose loss or gradients are NaN or infinite, and which the run was not to leave out. Code `DIFFIT_TRAIN`. */
export class NonFiniteError extends TrainError {
  /** The step, from 1. */
  readonly step: number;
  /** What was not finite: "loss", or the names of the parameters whose gradients were not. */
  readonly tensors: readonly string[];
  constructor(message: string, { step, tensors }: { step: number; tensors: readonly string[] }) {
    super(message);
    this.step = step;
    this.tensors = tensors;
  }
}

/** Gives an error of the native addon (a plain Error with `code`) its class. @internal */
export function fromNative(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof DiffitError) return error;
  const code = (error as { code?: unknown }).code;
  switch (code) {
    case 'DIFFIT_OUT_OF_MEMORY':
      return new OutOfMemoryError(error.message, { cause: error });
    case 'DIFFIT_NO_DEVICE':
    case 'DIFFIT_DEVICE_FAULT':
      return new DeviceError(error.message, { cause: error });
    case 'DIFFIT_STALE_ID':
      return new DisposedError(error.message);
    case 'DIFFIT_INVALID':
    case 'DIFFIT_UNSUPPORTED':
    case 'DIFFIT_BAD_ARGUMENT':
      return new DiffitError(code, error.message, { cause: error });
    default:
      return error;
  }
}

/** The candidate closest to `word` by edit distance, for "did you mean" hints; undefined when none is close. @internal */
export function suggestion(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    let row = Array.from({ length: candidate.length + 1 }, (_, i) => i);
    for (let i = 1; i <= word.length; i++) {
      const next = [i];
      for (let j = 1; j <= candidate.length; j++) {
        const swap = row[j - 1] + (word[i - 1].toLowerCase() === candidate[j - 1].toLowerCase() ? 0 : 1);
        next.push(Math.min(row[j] + 1, next[j - 1] + 1, swap));
      }
      row = next;
    }
    if (row[candidate.length] < bestDistance) {
      bestDistance = row[candidate.length];
      best = candidate;
    }
  }
  return best;
}

/** `Unknown X "word"; expected one of …` with a hint when one candidate is close. @internal */
export function unknownName(what: string, word: string, candidates: readonly string[]): OptionError {
  const hint = suggestion(word, candidates);
  return new OptionError(
    `Unknown ${what} "${word}"${hint ? `; did you mean "${hint}"?` : '.'} Expected one of: ${candidates.join(', ')}.`,
  );
}
