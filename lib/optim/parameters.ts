/** What an optimizer accepts as parameters: a list, or a map from name to tensor. */
import { DTypeError, OptionError } from '../errors.js';
import type { Tensor } from '../tensor.js';

/** Trainable tensors; in a list they go by their position ("0", "1", …). */
export type Parameters = Iterable<Tensor> | ReadonlyMap<string, Tensor>;

/** Parameters by name, checked: at least one, all f32. @internal */
export function namedParameters(parameters: Parameters, user: string): Map<string, Tensor> {
  const named =
    parameters instanceof Map
      ? new Map<string, Tensor>(parameters)
      : new Map([...(parameters as Iterable<Tensor>)].map((parameter, i) => [String(i), parameter]));
  if (named.size === 0) throw new OptionError(`${user}: there are no parameters.`);
  for (const [name, { dtype }] of named) {
    if (dtype !== 'f32') throw new DTypeError(`${user}: parameter "${name}" is ${dtype}, expected f32.`);
  }
  return named;
}
