/** Configurations read off the released checkpoints' keys and shapes (goldens/diffit_keys_*.json). */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { inferLatentModel } from '../../lib/models/infer-latent.js';

type Shapes = Record<string, { shape: number[] }>;

function keysOf(file: string): Shapes {
  const { keys } = JSON.parse(readFileSync(new URL(`../fixtures/goldens/${file}`, import.meta.url), 'utf8'));
  return Object.fromEntries(Object.entries<[number[], string]>(keys).map(([name, [shape]]) => [name, { shape }]));
}

/** DiffiT-XL/2 (SPEC section 3). */
const xl2 = {
  patchSize: 2,
  inChannels: 4,
  hiddenSize: 1152,
  depth: 28,
  numHeads: 16,
  mlpRatio: 4,
  numClasses: 1000,
  classDropoutProb: 0.1,
  learnSigma: true,
};

t.test("NVIDIA's released models", async (t) => {
  for (const inputSize of [32, 64]) {
    const found = inferLatentModel(keysOf(`diffit_keys_d28_s${inputSize}.json`));
    t.strictSame(found, { kind: 'LatentDiffiT', config: { inputSize, ...xl2 } }, `input size ${inputSize}`);
  }
});

t.test('DiT, by its modulation', async (t) => {
  const shapes: Shapes = {
    'x_embedder.proj.weight': { shape: [384, 4, 4, 4] },
    pos_embed: { shape: [1, 64, 384] },
    'y_embedder.embedding_table.weight': { shape: [11, 384] },
    'blocks.0.mlp.fc1.weight': { shape: [1536, 384] },
    'blocks.1.mlp.fc1.weight': { shape: [1536, 384] },
    'blocks.0.adaLN_modulation.1.weight': { shape: [2304, 384] },
    'final_layer.linear.weight': { shape: [64, 384] },
  };
  t.match(inferLatentModel(shapes), {
    kind: 'DiT',
    config: { inputSize: 32, patchSize: 4, depth: 2, numHeads: 6, numClasses: 10, learnSigma: false },
  });
});

t.test('anything else is not one', async (t) => {
  t.equal(inferLatentModel({}), undefined);
  const { pos_embed, ...rest } = keysOf('diffit_keys_d28_s32.json');
  t.equal(inferLatentModel(rest), undefined);
  t.equal(inferLatentModel({ ...rest, pos_embed: { shape: [256, 1152] } }), undefined);
});
