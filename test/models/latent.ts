/** What the tests of the latent models share. */
import type { LatentTransformerConfig } from '../../lib/models/latent-transformer.js';
import type { Fixture } from '../helpers.js';

const names: Record<string, keyof LatentTransformerConfig> = {
  input_size: 'inputSize',
  patch_size: 'patchSize',
  in_channels: 'inChannels',
  hidden_size: 'hiddenSize',
  depth: 'depth',
  num_heads: 'numHeads',
  mlp_ratio: 'mlpRatio',
  class_dropout_prob: 'classDropoutProb',
  num_classes: 'numClasses',
  learn_sigma: 'learnSigma',
};

/** The options of a golden's model, which names them as the original code does. */
export function configOf(fixture: Fixture): LatentTransformerConfig {
  return Object.fromEntries(Object.entries(fixture.json.config).map(([name, value]) => [names[name], value]));
}
