/**
 * Resizing of 8-bit images as Pillow does it, bit for bit: data sets were prepared with it, and a network sees the difference of another
 * resampler (Parmar et al. 2022, "On aliased resizing", arXiv 2104.11222). A row is filtered, rounded to 8 bits, then a column; the filter
 * widens with the reduction, and its weights are integers of 22 bits after the point. (From version 13 on Pillow takes the columns of very tall
 * pictures first; this is what it did before, as the published data sets were made.)
 */
import type { Image } from './image.js';

/** Kernels by Pillow's names: box (area averages), bicubic (Catmull-Rom), lanczos (three lobes). */
export type Resampling = 'box' | 'bicubic' | 'lanczos';

interface Kernel {
  support: number;
  at(x: number): number;
}

/** For each output place: its first input place, and a row of `taps` weights. */
interface Weights {
  first: Int32Array;
  counts: Int32Array;
  taps: number;
  values: Int32Array;
}

/** Scales an image to width x height, both at least 1. */
export type Resize = (image: Image, width: number, height: number, resampling: Resampling) => Image;

/**
 * Makes the function that resizes. It uses nothing from outside of itself, so that its text is all a worker needs (data/crop-pool.ts).
 */
export function makeResize(): Resize {
  function sinc(x: number): number {
    return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
  }

  function cubic(x: number): number {
    const d = Math.abs(x);
    if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
    return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
  }

  const kernels: Record<Resampling, Kernel> = {
    box: { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
    bicubic: { support: 2, at: cubic },
    lanczos: { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  };

  const precision = 22;

  function weightsOf(from: number, to: number, { support: radius, at }: Kernel): Weights {
    const scale = from / to;
    const widened = Math.max(scale, 1);
    const support = radius * widened;
    const taps = 2 * Math.ceil(support) + 1;
    const made = { first: new Int32Array(to), counts: new Int32Array(to), taps, values: new Int32Array(to * taps) };
    const row = new Float64Array(taps);
    for (let i = 0; i < to; i++) {
      const centre = (i + 0.5) * scale;
      const first = Math.max(0, Math.trunc(centre - support + 0.5));
      const count = Math.min(from, Math.trunc(centre + support + 0.5)) - first;
      let sum = 0;
      for (let k = 0; k < count; k++) {
        row[k] = at((first + k - centre + 0.5) * (1 / widened));
        sum += row[k];
      }
      for (let k = 0; k < count; k++) {
        const weight = (sum === 0 ? row[k] : row[k] / sum) * 2 ** precision;
        made.values[i * taps + k] = Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
      made.first[i] = first;
      made.counts[i] = count;
    }
    return made;
  }

  /** The tables of the last sizes; a data set has few, or as many as images. */
  const tables = new Map<string, Weights>();
  const mostTables = 64;

  function tableOf(from: number, to: number, resampling: Resampling): Weights {
    const key = `${from} ${to} ${resampling}`;
    let table = tables.get(key);
    if (!table) {
      if (tables.size >= mostTables) tables.clear();
      table = weightsOf(from, to, kernels[resampling]);
      tables.set(key, table);
    }
    return table;
  }

  /** An image scaled to width x height, both at least 1. */
  function resize(image: Image, width: number, height: number, resampling: Resampling): Image {
    const { channels } = image;
    let { data } = image;
    if (width !== image.width) {
      const table = tableOf(image.width, width, resampling);
      data =
        channels === 3 ? rowsRgb(data, image.width, width, table) : rows(data, image.width, width, channels, table);
    }
    if (height !== image.height)
      data = columns(data, width * channels, height, tableOf(image.height, height, resampling));
    return { data, width, height, channels };
  }

  const half = 1 << (precision - 1);

  function rows(data: Uint8Array, from: number, to: number, channels: number, table: Weights): Uint8Array {
    const { first, counts, taps, values } = table;
    const out = new Uint8ClampedArray((data.length / from) * to);
    for (let start = 0, o = 0; start < data.length; start += from * channels) {
      for (let x = 0; x < to; x++) {
        for (let c = 0; c < channels; c++, o++) {
          let sum = half;
          let at = start + first[x] * channels + c;
          for (let k = x * taps, end = k + counts[x]; k < end; k++, at += channels) sum += data[at] * values[k];
          out[o] = sum >> precision;
        }
      }
    }
    return new Uint8Array(out.buffer);
  }

  /** The same with the three sums of a pixel side by side. */
  function rowsRgb(data: Uint8Array, from: number, to: number, table: Weights): Uint8Array {
    const { first, counts, taps, values } = table;
    const out = new Uint8ClampedArray((data.length / from) * to);
    for (let start = 0, o = 0; start < data.length; start += from * 3) {
      for (let x = 0; x < to; x++, o += 3) {
        let [red, green, blue] = [half, half, half];
        let at = start + first[x] * 3;
        for (let k = x * taps, end = k + counts[x]; k < end; k++, at += 3) {
          const weight = values[k];
          red += data[at] * weight;
          green += data[at + 1] * weight;
          blue += data[at + 2] * weight;
        }
        out[o] = red >> precision;
        out[o + 1] = green >> precision;
        out[o + 2] = blue >> precision;
      }
    }
    return new Uint8Array(out.buffer);
  }

  /** Along columns, a whole line at a time. */
  function columns(data: Uint8Array, line: number, to: number, { first, counts, taps, values }: Weights): Uint8Array {
    const out = new Uint8ClampedArray(line * to);
    const sums = new Int32Array(line);
    for (let y = 0; y < to; y++) {
      sums.fill(half);
      for (let k = 0; k < counts[y]; k++) {
        const weight = values[y * taps + k];
        const start = (first[y] + k) * line;
        for (let i = 0; i < line; i++) sums[i] += data[start + i] * weight;
      }
      for (let i = 0; i < line; i++) out[y * line + i] = sums[i] >> precision;
    }
    return new Uint8Array(out.buffer);
  }

  return resize;
}

export const resizeImage = makeResize();
