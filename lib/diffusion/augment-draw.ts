/**
 * What EDM's augmentation does to one image (Karras et al. 2022, appendix F.2), on the host: the draw, the matrix of its geometry, and the
 * nine labels that tell the network about it.
 */
import { HostRandom } from '../random.js';

/** Which transformations there are and how strong. EDM's settings are the defaults, p excepted: 0.12 for CIFAR-10, 0.15 for FFHQ. */
export interface AugmentOptions {
  /** Probability of each transformation but the left-right flip, from 0 to 1. */
  p: number;
  /** Share of `p` for left-right flips; the product may exceed 1, which flips half of all images. Default 1e8: always half. */
  xflip?: number;
  /** Share of `p` for upside-down flips; half of what is chosen is flipped. Default 1. */
  yflip?: number;
  /** Share of `p` for scaling. Default 1. */
  scale?: number;
  /** Share of `p` for rotation by any angle. Default 1. */
  rotate?: number;
  /** Share of `p` for anisotropic scaling, one axis up and the other down. Default 1. */
  aniso?: number;
  /** Share of `p` for translation. Default 1. */
  translate?: number;
  /** Standard deviation of the logarithm (base 2) of the scale. Default 0.2. */
  scaleStd?: number;
  /** Largest angle over pi. Default 1. */
  rotateMax?: number;
  /** Standard deviation of the logarithm (base 2) of the anisotropic scale. Default 0.2. */
  anisoStd?: number;
  /** Probability that the axes of the anisotropic scaling are turned. Default 0.5. */
  anisoRotate?: number;
  /** Standard deviation of the translation, in sides of the image. Default 0.125. */
  translateStd?: number;
}

/** What happens to one image; 0 throughout is nothing. */
export interface AugmentDraw {
  /** 1: mirrored left to right. */
  xflip: number;
  /** 1: turned upside down, after that. */
  yflip: number;
  /** Standard normal: the image is enlarged by 2^(scaleStd scale). */
  scale: number;
  /** Angle of the rotation. */
  rotate: number;
  /** Standard normal: one axis is enlarged by 2^(anisoStd aniso), the other made smaller. */
  aniso: number;
  /** Angle of these axes. */
  anisoAngle: number;
  /** Standard normal, x and y: moved by translateStd times that, in sides of the image. */
  translate: readonly [number, number];
}

/** Labels per image: what the network's augmentDim is. */
export const augmentLabels = 9;

/** Words of a random stream that belong to one image; 15 are used. */
const wordsPerImage = 16;

/** The draw of sample `sample`: it depends on the seed, the stream and that number alone. */
export function drawAugment(
  seed: number,
  stream: number,
  sample: number,
  options: Required<AugmentOptions>,
): AugmentDraw {
  const random = new HostRandom(seed, stream);
  random.restore({ position: wordsPerImage * sample });
  const { p, anisoRotate, rotateMax } = options;
  // All numbers are taken whether they are used or not, in a fixed order.
  const chosen = (share: number): boolean => random.uniform() < share * p;
  const angle = (most: number): number => (2 * random.uniform() - 1) * Math.PI * most;
  const flip = (share: number): number => {
    const value = Math.floor(2 * random.uniform());
    return chosen(share) ? value : 0;
  };
  const [xflip, yflip] = [flip(options.xflip), flip(options.yflip)];
  const [scales, rotates, stretches, moves] = [options.scale, options.rotate, options.aniso, options.translate].map(
    chosen,
  );
  const [rotation, axes] = [angle(rotateMax), angle(1)];
  const turned = random.uniform() < anisoRotate;
  const [scale, aniso, x, y] = [random.normal(), random.normal(), random.normal(), random.normal()];
  return {
    xflip,
    yflip,
    scale: scales ? scale : 0,
    rotate: rotates ? rotation : 0,
    aniso: stretches ? aniso : 0,
    anisoAngle: turned ? axes : 0,
    translate: moves ? [x, y] : [0, 0],
  };
}

/** The nine labels of a draw, in EDM's order. */
export function labelsOf({ xflip, yflip, scale, rotate, aniso, anisoAngle, translate }: AugmentDraw): number[] {
  const turn = [Math.cos(rotate) - 1, Math.sin(rotate)];
  const stretch = [aniso * Math.cos(anisoAngle), aniso * Math.sin(anisoAngle)];
  return [xflip, yflip, scale, ...turn, ...stretch, ...translate];
}

/** The first two rows of a 3 x 3 matrix [a, b, c; d, e, f; 0, 0, 1]. */
export type Affine2d = readonly [number, number, number, number, number, number];

/** The matrix that applies `right` first. */
export function compose(left: Affine2d, right: Affine2d): Affine2d {
  const [a, b, c, d, e, f] = left;
  const [g, h, i, j, k, l] = right;
  return [a * g + b * j, a * h + b * k, a * i + b * l + c, d * g + e * j, d * h + e * k, d * i + e * l + f];
}

export const scaling = (x: number, y = x): Affine2d => [x, 0, 0, 0, y, 0];
export const translation = (x: number, y = x): Affine2d => [1, 0, x, 0, 1, y];

function rotation(angle: number): Affine2d {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [cos, -sin, 0, sin, cos, 0];
}

/** From a pixel of the result to where it comes from, both counted from the image's centre; the flips come before. */
export function sourceOf(
  draw: AugmentDraw,
  [height, width]: readonly [number, number],
  { scaleStd, anisoStd, translateStd }: Required<AugmentOptions>,
): Affine2d {
  const { scale, rotate, aniso, anisoAngle, translate } = draw;
  const [grown, stretched] = [2 ** (scaleStd * scale), 2 ** (anisoStd * aniso)];
  const [x, y] = translate;
  return [
    scaling(1 / grown),
    rotation(rotate),
    rotation(-anisoAngle),
    scaling(1 / stretched, stretched),
    rotation(anisoAngle),
    translation(-x * width * translateStd, -y * height * translateStd),
  ].reduce(compose);
}
