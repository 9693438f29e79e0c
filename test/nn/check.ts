/** Comparing a module's gradients with a fixture's. */
import type { Test } from 'tap';
import type { Module } from '../../lib/nn/module.js';
import { type FixtureTensor, maxRelativeError, nhwc } from '../helpers.js';

/**
 * Asserts that the module's parameters have exactly the gradients `expected` names (state-dict names and layouts), each
 * within `tolerance` of its largest value; one assertion. Disposes them.
 */
export async function checkGradients(
  t: Test,
  module: Module,
  expected: Readonly<Record<string, FixtureTensor>>,
  tolerance: number,
): Promise<void> {
  const parameters = module.namedParameters();
  const problems = Object.keys(expected).filter((name) => !parameters.has(name));
  let worst = [0, ''] as [number, string];
  for (const [name, parameter] of parameters) {
    const { grad } = parameter;
    if (!grad || !expected[name]) {
      problems.push(`${name}: ${grad ? 'a gradient' : 'no gradient'}`);
      continue;
    }
    const { data, shape } = expected[name];
    // Conv weights are [O, I, kh, kw] in the fixture and [O, kh, kw, I] in memory.
    const here = shape.length === 4 ? nhwc(data, shape) : { data, shape };
    if (String(grad.shape) !== String(here.shape)) problems.push(`${name} is [${grad.shape}], not [${here.shape}]`);
    const error = maxRelativeError(await grad.data(), here.data);
    if (error > worst[0]) worst = [error, name];
    if (error > tolerance) problems.push(`${name}: error ${error.toExponential(1)}`);
    grad.dispose();
    parameter.grad = undefined;
  }
  const summary = `${parameters.size} gradients, largest error ${worst[0].toExponential(1)} in ${worst[1]}`;
  t.ok(problems.length === 0, problems.length > 0 ? problems.join('; ') : summary);
}
