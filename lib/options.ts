/** Checks option objects against zod schemas; every failure is one OptionError that names the option. */
import type { z } from 'zod';
import { OptionError, suggestion } from './errors.js';

/**
 * `value` parsed by `schema` (a strict object), with its defaults filled in. `what` starts the message: a class,
 * function or file. Throws OptionError naming every wrong, missing or unknown option.
 */
export function parseOptions<T extends z.ZodObject>(schema: T, value: unknown, what: string): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const known = Object.keys(schema.shape);
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
