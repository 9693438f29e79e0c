/**
 * Latent DiffiT (paper section 3.3; NVlabs/DiffiT): a plain stack of blocks x = x + TMSA(LN(x), c), x = x + MLP(LN(x))
 * with the time and label token c in the attention's q, k and v, and no AdaLN. It loads NVIDIA's released checkpoints.
 */
import { LatentTransformer, type LatentTransformerConfig } from './latent-transformer.js';

/** Latent DiffiT (the paper's section 3.3): time and label come in through the attention's q, k and v (TMSA). Loads NVIDIA's released weights. */
export class LatentDiffiT extends LatentTransformer {
  /** @throws {OptionError} An option that is unknown or out of range, or one that does not divide another. */
  constructor(options: LatentTransformerConfig = {}) {
    super('LatentDiffiT', options, 'tmsa');
  }
}
