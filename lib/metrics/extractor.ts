/** What turns images into features: any function of this type, and the one of InceptionV3. */
import { ShapeError } from '../errors.js';
import { affine, cast } from '../ops/elementwise.js';
import { concat } from '../ops/index.js';
import { autocast, noGrad, scope } from '../scope.js';
import { format } from '../shape.js';
import type { Tensor } from '../tensor.js';
import { InceptionV3 } from './inception.js';
import { type ResizeMode, resize } from './resize.js';

/** What an extractor gives for a batch of B images, f32 each. */
export interface Features {
  /** [B, D]; FID, precision and recall are of these. */
  features: Tensor;
  /** [B, S]; sFID is of these. */
  spatial?: Tensor;
  /** [B, K]; the Inception Score is of their softmax. */
  logits?: Tensor;
}

/**
 * Features of a batch of images u8 [B, H, W, C]. It is called in a scope, without recording; what it returns passes to the caller, the images stay the caller's.
 */
export interface FeatureExtractor {
  /** u8 [B, H, W, C] -> features. */
  (images: Tensor): Features | Promise<Features>;
  /**
   * Names exactly what it computes, weights included; extractors with one name give the same features. Statistics of references are
   * cached under it; without it they are not.
   */
  readonly cacheKey?: string;
}

/** Options of {@link inceptionExtractor}. */
export interface InceptionExtractorOptions {
  /** How images that are not 299 pixels wide are resized, in bilinear weights. Default 'tensorflow', as guided-diffusion's evaluator. */
  resize?: ResizeMode;
  /** Names the weights, for {@link FeatureExtractor.cacheKey}. {@link loadInception} gives it. */
  weightsKey?: string;
}

/**
 * Features of images of any size by InceptionV3: resized to 299 x 299, then x / 127.5 - 1 for 'pytorch' and (x - 128) / 128 for
 * 'tensorflow', each what the weights meet there. Grey images become three equal channels.
 *
 * @throws {ShapeError} From the extractor: images of another number of channels than 1 or 3.
 */
export function inceptionExtractor(
  network: InceptionV3,
  { resize: mode = 'tensorflow', weightsKey }: InceptionExtractorOptions = {},
): FeatureExtractor {
  const extract = (images: Tensor): Features => {
    const [, , , channels] = images.shape;
    if (images.ndim !== 4 || (channels !== 1 && channels !== 3)) {
      throw new ShapeError(`InceptionV3: images are ${format(images.shape)}, expected [B, H, W, 3] or [B, H, W, 1].`);
    }
    return noGrad(() =>
      autocast('f32', () =>
        scope(() => {
          const grey = cast(images, 'f32');
          const sized = resize(channels === 1 ? concat([grey, grey, grey], 3) : grey, InceptionV3.side, mode);
          const input = mode === 'tensorflow' ? affine(sized, 1 / 128, -1) : affine(sized, 1 / 127.5, -1);
          if (sized !== input) sized.dispose();
          return network.forward(input) as unknown as Features;
        }),
      ),
    );
  };
  const cacheKey = weightsKey === undefined ? undefined : `inception-v3 ${weightsKey} ${mode}`;
  return Object.assign(extract, { cacheKey });
}
