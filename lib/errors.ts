/**
 * The errors of the package. Each has a stable `code`; messages name what was wrong and what was expected, in one
 * sentence, and are safe to show to a user.
 */

/** Base class: everything this package throws on purpose. */
export class DiffitError extends Error {
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** Shapes that do not fit an operation or a state dict. */
export class ShapeError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_SHAPE', message);
  }
}

/** A dtype an operation does not take. */
export class DTypeError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_DTYPE', message);
  }
}

/** An unknown, missing or out-of-range option or argument. */
export class OptionError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_OPTION', message);
  }
}

/** A device that cannot be had, or tensors of different devices in one operation. */
export class DeviceError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_DEVICE', message, options);
  }
}

/** Device memory, or the cap on it, is exhausted; the process can go on after freeing some. */
export class OutOfMemoryError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_OUT_OF_MEMORY', message, options);
  }
}

/** A tensor used after dispose(), or after the scope that owned it ended. */
export class DisposedError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_DISPOSED', message);
  }
}

/** backward() on something that has no gradient graph, or twice on the same one. */
export class AutogradError extends DiffitError {
  constructor(message: string) {
    super('DIFFIT_AUTOGRAD', message);
  }
}

/** A state dict whose keys or shapes are not the model's; lists all of them. */
export class StateDictError extends DiffitError {
  readonly missing: readonly string[];
  readonly unexpected: readonly string[];
  readonly misshapen: readonly string[];
  constructor(message: string, keys: { missing: string[]; unexpected: string[]; misshapen: string[] }) {
    super('DIFFIT_STATE_DICT', message);
    this.missing = keys.missing;
    this.unexpected = keys.unexpected;
    this.misshapen = keys.misshapen;
  }
}

/** A file that is not what it claims to be: truncated, corrupt, or of another format. */
export class FileFormatError extends DiffitError {
  readonly path: string;
  constructor(message: string, options: { path: string; cause?: unknown }) {
    super('DIFFIT_FILE_FORMAT', message, { cause: options.cause });
    this.path = options.path;
  }
}

/** A file or folder that cannot be read or written: missing, not permitted, disk full. */
export class FileError extends DiffitError {
  readonly path: string;
  constructor(message: string, options: { path: string; cause?: unknown }) {
    super('DIFFIT_FILE', message, { cause: options.cause });
    this.path = options.path;
  }
}

/** A data set that is missing, empty or inconsistent. */
export class DataError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_DATA', message, options);
  }
}

/** A failed run: a checkpoint of another run, no data, and the like. */
export class TrainError extends DiffitError {
  constructor(message: string, options?: ErrorOptions) {
    super('DIFFIT_TRAIN', message, options);
  }
}

/** A training step whose loss or gradients are NaN or infinite, and which the run was not to leave out. */
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

/** Gives an error of the native addon (a plain Error with `code`) its class. */
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

/** The candidate closest to `word` by edit distance, for "did you mean" hints; undefined when none is close. */
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

/** `Unknown X "word"; expected one of …` with a hint when one candidate is close. */
export function unknownName(what: string, word: string, candidates: readonly string[]): OptionError {
  const hint = suggestion(word, candidates);
  return new OptionError(
    `Unknown ${what} "${word}"${hint ? `; did you mean "${hint}"?` : '.'} Expected one of: ${candidates.join(', ')}.`,
  );
}
