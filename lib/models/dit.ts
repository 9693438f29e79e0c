/**
 * DiT (Peebles & Xie, arXiv 2212.09748): LatentDiffiT's baseline. The same network, but the time and label token
 * modulates the LayerNorms and gates the residuals (AdaLN-Zero), and attention has no position bias.
 */
import { LatentTransformer, type LatentTransformerConfig } from './latent-transformer.js';

export class DiT extends LatentTransformer {
  /** Throws OptionError naming the option: unknown, out of range, or one that does not divide another. */
  constructor(options: LatentTransformerConfig = {}) {
    super('DiT', options, 'adaln');
  }
}
