/**
 * The configuration of a latent model from the names and shapes of its weights, for files that carry none: NVIDIA's
 * released DiffiT and the official DiT. Everything but DiT's number of heads can be read off a shape.
 */
import type { Shape } from '../shape.js';

/** What {@link inferLatentModel} finds: a class of this package and its constructor's options. */
export interface InferredModel {
  /** The class. */
  kind: 'LatentDiffiT' | 'DiT';
  /** Its options, as {@link LatentTransformerConfig}. */
  config: Record<string, number | boolean>;
}

/**
 * The configuration of a latent model from the names and shapes of its weights, for files that carry none: NVIDIA's released DiffiT and the
 * official DiT. Undefined when these are not such weights.
 */
export function inferLatentModel(shapes: Readonly<Record<string, { shape: Shape }>>): InferredModel | undefined {
  const shape = (name: string, ndim: number): Shape | undefined => {
    const found = shapes[name]?.shape;
    return found?.length === ndim ? found : undefined;
  };
  const patch = shape('x_embedder.proj.weight', 4);
  const positions = shape('pos_embed', 3);
  const hidden = shape('blocks.0.mlp.fc1.weight', 2);
  const labels = shape('y_embedder.embedding_table.weight', 2);
  const last = shape('final_layer.linear.weight', 2);
  if (!patch || !positions || !hidden || !labels || !last) return undefined;
  const [hiddenSize, inChannels, patchSize] = patch;
  const table = shape('blocks.0.attn.relative_position_bias_table', 2);
  if (!table && !shapes['blocks.0.adaLN_modulation.1.weight']) return undefined;
  let depth = 0;
  while (shapes[`blocks.${depth}.mlp.fc1.weight`]) depth++;
  const config = {
    inputSize: Math.sqrt(positions[1]) * patchSize,
    patchSize,
    inChannels,
    hiddenSize,
    depth,
    // DiT's sizes: XL has 16 heads of 72, the others heads of 64.
    numHeads: table ? table[1] : hiddenSize === 1152 ? 16 : hiddenSize / 64,
    mlpRatio: hidden[0] / hiddenSize,
    // The table's last row is the null class; published models were trained with a tenth of the labels dropped.
    numClasses: labels[0] - 1,
    classDropoutProb: 0.1,
    learnSigma: last[0] === 2 * patchSize ** 2 * inChannels,
  };
  return { kind: table ? 'LatentDiffiT' : 'DiT', config };
}
