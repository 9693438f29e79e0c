/**
 * The running half of autograd: reverse-mode differentiation over the recorded nodes, and recomputation of stretches
 * of the forward pass (checkpointing). First derivatives only.
 */
import type { DType } from './dtype.js';
import { AutogradError, ShapeError } from './errors.js';
import { gradients, type Recorded, remakers } from './grads.js';
import { castRaw, linearCombination } from './ops/elementwise.js';
import { reshape } from './ops/index.js';
import { defaultGenerator } from './ops/random.js';
import { adopt, autocast, autocastDType, gradEnabled, keep, noGrad, scope, withGrad } from './scope.js';
import { format, type Shape, sameShape } from './shape.js';
import { Node, setEngine } from './tape.js';
import { full, type Tensor } from './tensor.js';

setEngine(backward);

/**
 * Adds d root / d leaf to `grad` of every leaf below root. The graph is used up: its saved buffers are freed as the
 * walk passes, so memory falls while gradients are computed.
 */
function backward(root: Tensor, gradient?: Tensor): void {
  if (!root.node) {
    throw new AutogradError(
      root.requiresGrad
        ? 'backward(): this tensor is a leaf; call it on a result computed from it.'
        : 'backward(): nothing was recorded for this tensor (no input requires a gradient, or it was made inside noGrad).',
    );
  }
  if (gradient ? !sameShape(gradient.shape, root.shape) : root.size !== 1) {
    throw new ShapeError(
      `backward(): a gradient of shape ${format(root.shape)} is needed, got ${gradient ? format(gradient.shape) : 'none'}.`,
    );
  }
  const start = root.node;
  const order = inFallingOrder(start);
  const used = order.find((node) => node.released);
  if (used) {
    throw new AutogradError(
      `backward(): the graph through "${used.op}" was already used; compute the result again to call it twice.`,
    );
  }
  noGrad(() => {
    const pending = new Map<Node, Tensor>();
    pending.set(
      start,
      gradient ? gradient.alias() : keep(full(root.shape, 1, { dtype: root.dtype, device: root.device })),
    );
    try {
      for (const node of order) {
        const g = pending.get(node);
        pending.delete(node);
        if (g) step(node, g, pending);
        else node.release();
      }
    } finally {
      for (const left of pending.values()) left.dispose();
    }
  });
}

/** Every node that reaches `start`, latest first: each comes after all that use its output. */
function inFallingOrder(start: Node): Node[] {
  const seen = new Set<Node>([start]);
  const stack = [start];
  for (let node = stack.pop(); node; node = stack.pop()) {
    for (const edge of node.edges) {
      if (edge instanceof Node && !seen.has(edge)) {
        seen.add(edge);
        stack.push(edge);
      }
    }
  }
  return [...seen].sort((a, b) => b.order - a.order);
}

/** Runs one node's rule and hands the results to the nodes or leaves they belong to. */
function step(node: Node, g: Tensor, pending: Map<Node, Tensor>): void {
  const { dtypes, edges } = node;
  try {
    scope(() => {
      const results = gradients[node.op](g, new Visit(node, pending));
      for (let i = 0; i < edges.length; i++) {
        const edge = edges[i];
        if (edge === undefined) continue;
        const entry = results[i];
        const raw = typeof entry === 'function' ? entry() : entry;
        if (!raw) continue;
        const dtype = dtypes[i] as DType; // a gradient has its tensor's dtype
        const result = raw.dtype === dtype ? raw : castRaw(raw, dtype);
        if (edge instanceof Node) pending.set(edge, accumulate(pending.get(edge), result));
        else edge.grad = accumulate(edge.grad, result);
      }
    });
  } finally {
    node.release();
    g.dispose();
  }
}

/** A node as its rule sees it, on the way back. No closure: the build keeps names, and naming one takes longer than making it. */
class Visit implements Recorded {
  readonly saved: Tensor[];
  constructor(
    private readonly node: Node,
    private readonly pending: Map<Node, Tensor>,
  ) {
    this.saved = savedBy(node);
  }
  get shapes(): readonly Shape[] {
    return this.node.shapes;
  }
  get dtypes(): readonly (DType | undefined)[] {
    return this.node.dtypes;
  }
  get attributes(): Recorded['attributes'] {
    return this.node.attributes;
  }
  get needs(): boolean[] {
    return this.node.edges.map((edge) => edge !== undefined);
  }
  take(i: number): Tensor | undefined {
    const edge = this.node.edges[i];
    // Of results only: the gradient of a leaf may be in the user's hands.
    const sum = edge instanceof Node ? this.pending.get(edge) : undefined;
    if (!sum || sum.dtype !== this.node.dtypes[i]) return undefined;
    this.pending.delete(edge as Node);
    adopt(sum);
    return sum;
  }
}

/** What the rule of a node wants to see, made again where that was not kept. */
function savedBy({ saved }: Node): Tensor[] {
  return saved.map((entry) =>
    entry instanceof Node ? remakers[entry.op](savedBy(entry), entry.attributes) : entry,
  ) as Tensor[];
}

/** sum + part. The sum is updated in place when nobody else can see its buffer. */
function accumulate(sum: Tensor | undefined, part: Tensor): Tensor {
  if (!sum) return part.alias();
  if (!sum.isShared) {
    return linearCombination(
      [
        [1, sum],
        [1, part],
      ],
      sum,
    );
  }
  const total = keep(
    linearCombination([
      [1, sum],
      [1, part],
    ]),
  );
  sum.dispose();
  return total;
}

/**
 * Runs `fn(...inputs)` without keeping its intermediate results, and runs it again during backward() to get them
 * (activation checkpointing): memory for the price of one more forward pass. Draws from the default generator repeat
 * exactly, and the autocast around the call is around the second run too. Parameters that fn uses besides `inputs` get their gradients
 * too. Returns fn's result; fn must be synchronous and give the same result for the same inputs.
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor, ...inputs: Tensor[]): Tensor {
  const random = defaultGenerator.state();
  const precision = autocastDType() ?? 'f32';
  const output = noGrad(() => scope(() => fn(...inputs).detach()));
  if (!gradEnabled()) return output;
  // Recorded even when no input asks for a gradient: the parameters inside fn do.
  const rerun = (g: Tensor, saved: readonly Tensor[], needs: readonly boolean[]): (Tensor | undefined)[] => {
    const now = defaultGenerator.state();
    defaultGenerator.restore(random);
    try {
      return withGrad(true, () => recompute((...leaves) => autocast(precision, () => fn(...leaves)), saved, needs, g));
    } finally {
      defaultGenerator.restore(now);
    }
  };
  const edges = inputs.map((input) => (input.requiresGrad ? (input.node ?? input) : undefined));
  const saved = inputs.map((input) => input.alias());
  output.node = new Node(
    'checkpoint',
    edges,
    inputs.map((input) => input.shape),
    inputs.map((input) => input.dtype),
    saved,
    { rerun },
  );
  output.requiresGrad = true;
  return output;
}

/** Forward and backward of fn on fresh leaves over the saved inputs; returns their gradients. */
function recompute(
  fn: (...inputs: Tensor[]) => Tensor,
  saved: readonly Tensor[],
  needs: readonly boolean[],
  g: Tensor,
): (Tensor | undefined)[] {
  return scope(() => {
    const leaves = saved.map((tensor, i) => {
      const leaf = tensor.detach();
      leaf.requiresGrad = needs[i];
      return leaf;
    });
    // Through views: inside fn the inputs are results, as they were without checkpointing, and so are added up in the same way.
    const result = fn(...leaves.map((leaf) => reshape(leaf, leaf.shape)));
    if (result.requiresGrad) reshape(result, result.shape).backward(g); // fn may have returned a parameter
    for (const leaf of leaves) if (leaf.grad) adopt(leaf.grad);
    return leaves.map((leaf) => leaf.grad);
  });
}
