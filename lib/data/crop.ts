/** How pictures of any size become squares, as data sets for diffusion models are made: with Pillow's resampling, bit for bit. */
import type { Image } from '../io/image.js';
import { type Resampling, type Resize, resizeImage } from '../io/resample.js';

/**
 * - 'scale': to the square, whatever the picture's proportions (EDM's dataset_tool without a transform; FFHQ's pictures are squares).
 * - 'center': the largest square in the middle, then scaled (EDM's center-crop).
 * - 'adm': halved by averaging while both sides stay at least twice the size, scaled bicubically so that the shorter side fits, then cropped in
 *   the middle (guided-diffusion's center_crop_arr, which all ImageNet models of that line are trained with).
 */
export type Crop = (typeof crops)[number];
export const crops = ['scale', 'center', 'adm'] as const;

/** Makes a picture a square of `size`; `resampling` is of 'scale' and 'center'. */
export type Square = (image: Image, size: number, crop: Crop, resampling: Resampling) => Image;

/** Makes the function that does it with a given resize(). As makeResize(), it uses nothing from outside of itself. */
export function makeSquare(resize: Resize): Square {
  function square(image: Image, size: number, crop: Crop, resampling: Resampling): Image {
    if (crop === 'adm') return admCrop(image, size);
    const square = crop === 'center' ? middle(image, Math.min(image.width, image.height)) : image;
    return resize(square, size, size, resampling);
  }

  function admCrop(image: Image, size: number): Image {
    let reduced = image;
    while (Math.min(reduced.width, reduced.height) >= 2 * size) {
      reduced = resize(reduced, Math.floor(reduced.width / 2), Math.floor(reduced.height / 2), 'box');
    }
    const scale = size / Math.min(reduced.width, reduced.height);
    const [width, height] = [roundHalfEven(reduced.width * scale), roundHalfEven(reduced.height * scale)];
    return middle(resize(reduced, width, height, 'bicubic'), size);
  }

  /** The square of `side` in the middle, towards the top left where it is not exact. */
  function middle({ data, width, height, channels }: Image, side: number): Image {
    const [left, top] = [Math.floor((width - side) / 2), Math.floor((height - side) / 2)];
    const out = new Uint8Array(side * side * channels);
    for (let y = 0; y < side; y++) {
      const start = ((top + y) * width + left) * channels;
      out.set(data.subarray(start, start + side * channels), y * side * channels);
    }
    return { data: out, width: side, height: side, channels };
  }

  /** Python's round(). */
  function roundHalfEven(x: number): number {
    const rounded = Math.round(x);
    return Math.abs(x % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
  }

  return square;
}

export const squareImage = makeSquare(resizeImage);
