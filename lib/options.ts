/**
 * Checks option objects against zod schemas; every failure is one OptionError that names the option. zod is loaded with the first schema
 * that is asked for: it is half of what importing the package would load.
 */
import { createRequire } from 'node:module';
import type { z } from 'zod';
import { OptionError, suggestion } from './errors.js';

const require = createRequire(import.meta.url);

/** A schema that is made when it is first called for. */
export type Schema<T extends z.ZodType> = () => T;
/** What a schema takes, and what it gives, with the defaults filled in. */
export type Input<S extends Schema<z.ZodType>> = z.input<ReturnType<S>>;
export type Output<S extends Schema<z.ZodType>> = z.output<ReturnType<S>>;

/** The schema that `make` makes, once. */
export function schema<T extends z.ZodType>(make: (zod: typeof z) => T): Schema<T> {
  let made: T | undefined;
  return () => {
    made ??= make((require('zod') as { z: typeof z }).z);
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
  const known = Object.keys(schema().shape);
  const problems = result.error.issues.map((issue) => {
    if (issue.code === 'unrecognized_keys') {
      return issue.keys
        .map((key) => {
          const hint = suggestion(key, known);
          return `unknown option "${key}"${hint ? ` (did you mean "${hint}"?)` : ''}`;
        })
        .join(', ');
    }
    const path = issue.path.join('.');
    return path ? `${path}: ${issue.message}` : issue.message;
  });
  throw new OptionError(`${what}: ${problems.join('; ')}.`);
}
