/**
 * Checks option objects against zod schemas; every failure is one OptionError that names the option, what it was and what was expected
 * (option-problems.ts). zod is loaded with the first schema that is asked for: it is half of what importing the package would load.
 *
 *     const schemaOf = schema((z, is) => z.strictObject({ steps: is.count.default(18) } satisfies Fields<SampleOptions>));
 *     const { steps } = parseOptions(schemaOf, options, 'sample');
 */
import { createRequire } from 'node:module';
import type { z } from 'zod';
import { OptionError } from './errors.js';
import { problem } from './option-problems.js';

const require = createRequire(import.meta.url);

/** A schema that is made when it is first called for. */
export type Schema<T extends z.ZodType> = () => T;
/** What a schema takes, and what it gives, with the defaults filled in. */
export type Input<S extends Schema<z.ZodType>> = z.input<ReturnType<S>>;
export type Output<S extends Schema<z.ZodType>> = z.output<ReturnType<S>>;
/** A schema for every option of an interface, none more, that takes nothing the interface does not: `{ … } satisfies Fields<Options>`. */
export type Fields<Options> = { readonly [K in keyof Options]-?: z.ZodType<unknown, Options[K]> };

/** The schema that `make` makes, once. */
export function schema<T extends z.ZodType>(make: (zod: typeof z, kinds: Kinds) => T): Schema<T> {
  let made: T | undefined;
  return () => {
    if (!made) {
      const zod = (require('zod') as { z: typeof z }).z;
      kinds ??= kindsOf(zod);
      made = make(zod, kinds);
    }
    return made;
  };
}

/**
 * `value` parsed by `schema` (a strict object), with its defaults filled in. `what` starts the message: a class,
 * function or file. Throws OptionError naming every wrong, missing or unknown option.
 */
export function parseOptions<T extends z.ZodObject>(schema: Schema<T>, value: unknown, what: string): z.output<T> {
  const result = schema().safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.map((issue) => problem(schema(), value, issue));
  throw new OptionError(`${what}: ${[...new Set(problems)].join('; ')}.`);
}

/** Kinds of options that come again and again. */
interface Kinds {
  /** An integer of at least 1. */
  readonly count: z.ZodInt;
  /** An integer of at least 0: a seed, a stream, a number of something there may be none of. */
  readonly natural: z.ZodInt;
  /** A finite number of at least 0. */
  readonly atLeastZero: z.ZodNumber;
  /** A number from 0 to 1. */
  readonly share: z.ZodNumber;
  /** A name: a path, a device. */
  readonly name: z.ZodString;
  readonly signal: z.ZodType<AbortSignal, AbortSignal>;
  readonly random: { readonly seed: z.ZodOptional<z.ZodInt>; readonly stream: z.ZodOptional<z.ZodInt> } & {
    readonly firstSample: z.ZodOptional<z.ZodInt>;
  };
  /** A function; its type is the option's. */
  callback<F>(): z.ZodType<F, F>;
  /** Anything `check` is true of; `expected` says what that is: "a tensor". */
  value<T>(check: (value: unknown) => boolean, expected: string): z.ZodType<T, T>;
  /** An object with these methods. */
  having<T>(methods: readonly (keyof T & string)[], expected: string): z.ZodType<T, T>;
  /** A live or disposed tensor; the operations check the rest. */
  tensor<T>(): z.ZodType<T, T>;
}

let kinds: Kinds | undefined;

function kindsOf(z: typeof import('zod').z): Kinds {
  const natural = z.int().min(0);
  const value = <T>(check: (value: unknown) => boolean, expected: string): z.ZodType<T, T> =>
    z.custom<T>(check).describe(expected);
  const having = <T>(methods: readonly (keyof T & string)[], expected: string): z.ZodType<T, T> =>
    value<T>((x) => isObject(x) && methods.every((name) => typeof x[name] === 'function'), expected);
  return {
    count: z.int().min(1),
    natural,
    atLeastZero: z.number().min(0),
    share: z.number().min(0).max(1),
    name: z.string().min(1),
    signal: having<AbortSignal>(['throwIfAborted', 'addEventListener'], 'an AbortSignal'),
    random: { seed: natural.optional(), stream: natural.optional(), firstSample: natural.optional() },
    callback: () => value((x) => typeof x === 'function', 'a function'),
    value,
    having,
    tensor: () => value((x) => isObject(x) && typeof x.dtype === 'string' && Array.isArray(x.shape), 'a tensor'),
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return (typeof value === 'object' && value !== null) || typeof value === 'function';
}
