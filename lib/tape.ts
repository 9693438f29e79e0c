/**
 * The recording half of autograd: what an operation leaves behind so that backward() can find its way.
 *
 * A node holds its own references to the buffers it saves, so user code may dispose a tensor as soon as it is done
 * with it. Nodes are numbered in order of creation; backward() walks them in falling order (autograd.ts), looking up
 * the rule of `op` in grads.ts.
 */
import type { DType } from './dtype.js';
import { AutogradError } from './errors.js';
import { gradEnabled } from './scope.js';
import type { Shape } from './shape.js';
import type { Tensor } from './tensor.js';

/** Parameters of an operation that its gradient needs besides tensors. */
export type Attributes = Readonly<Record<string, unknown>>;

/** One recorded operation with one output. */
export class Node {
  /** Order of creation. */
  readonly order = counter++;
  released = false;

  constructor(
    /** Key of the rule in grads.ts. */
    readonly op: string,
    /** Where each input's gradient goes: the input's own node, the leaf tensor, or nowhere. */
    readonly edges: readonly (Node | Tensor | undefined)[],
    readonly shapes: readonly Shape[],
    /** Of the inputs, and so of their gradients. */
    readonly dtypes: readonly (DType | undefined)[],
    /** Aliases of the tensors the rule needs, or the node that makes one again; undefined entries are absent optional inputs. */
    readonly saved: readonly (Tensor | Node | undefined)[],
    readonly attributes: Attributes,
  ) {}

  /** Gives the saved buffers back; a second backward() through here is then an error. */
  release(): void {
    this.released = true;
    for (const tensor of this.saved) if (!(tensor instanceof Node)) tensor?.dispose();
  }
}

let counter = 0;

/**
 * Operations whose results are not saved but made again in backward(), from what the operation saved itself (grads.ts has how): norms, which
 * cost one memory pass, and whose input is kept in any case. What uses the result comes first on the way back, so it is there still.
 */
const madeAgain: ReadonlySet<string> = new Set(['layerNorm', 'groupNorm']);
// A graph that nobody called backward() on holds its saved buffers until it is collected; then their own handles free them.

/**
 * Records `output = op(inputs)` when gradients are on and some input needs one. `saved` are the tensors the rule
 * wants to see again. Returns `output`.
 */
export function record(
  op: string,
  inputs: readonly (Tensor | undefined)[],
  output: Tensor,
  saved: readonly (Tensor | undefined)[] = [],
  attributes: Attributes = {},
): Tensor {
  if (!needsGrad(inputs)) return output;
  const edges = inputs.map((input) => (input?.requiresGrad ? (input.node ?? input) : undefined));
  const aliases = saved.map((tensor) =>
    tensor?.node && madeAgain.has(tensor.node.op) ? tensor.node : tensor?.alias(),
  );
  output.node = new Node(
    op,
    edges,
    inputs.map((input) => input?.shape ?? []),
    inputs.map((input) => input?.dtype),
    aliases,
    attributes,
  );
  output.requiresGrad = true;
  return output;
}

/** Would an operation on these inputs be recorded? */
export function needsGrad(inputs: readonly (Tensor | undefined)[]): boolean {
  for (const input of inputs) if (input?.requiresGrad) return gradEnabled();
  return false;
}

type Backward = (root: Tensor, gradient?: Tensor) => void;
let engine: Backward | undefined;

/** Set once by autograd.ts, so that Tensor.backward() needs no import of the room above. */
export function setEngine(backward: Backward): void {
  engine = backward;
}

export function runBackward(root: Tensor, gradient?: Tensor): void {
  if (!engine) throw new AutogradError('backward(): import the package entry "diffit", which brings autograd with it.');
  engine(root, gradient);
}
