/**
 * DiT (Peebles & Xie, arXiv 2212.09748): LatentDiffiT's baseline. The same network, but the time and label token
 * modulates the LayerNorms and gates the residuals (AdaLN-Zero), and attention has no position bias.
 */
import { LatentTransformer, type LatentTransformerConfig } from './latent-transformer.js';

/** DiT (Peebles & Xie, arXiv 2212.09748), LatentDiffiT's baseline: time and label come in through AdaLN-Zero. */
export class DiT extends LatentTransformer {
  /** @throws {OptionError} An option that is unknown or out of range, or one that does not divide another. */
  constructor(options: LatentTransformerConfig = {}) {
    super('DiT', options, 'adaln');
  }
}
