/** Weights and images that test/reference/make_inception.py makes from the same formula. */
import { saveSafetensors } from '../../lib/io/index.js';
import { tensor } from '../../lib/tensor.js';
import { loadFixture } from '../helpers.js';

export const fixture = loadFixture('inception.safetensors');

/** Numbers of [-1, 1): a 32-bit hash of seed and index. */
export function hashed(seed: number, count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => {
    let u = (Math.imul(i, 1664525) + Math.imul(seed, 1013904223) + 12345) >>> 0;
    u = Math.imul(u ^ (u >>> 16), 0x45d9f3b) >>> 0;
    u = Math.imul(u ^ (u >>> 16), 0x45d9f3b) >>> 0;
    u = (u ^ (u >>> 16)) >>> 0;
    return (u >>> 8) * 2 ** -23 - 1;
  });
}

function values(seed: number, name: string, shape: readonly number[]): Float32Array {
  const product = (of: readonly number[]): number => of.reduce((n, side) => n * side, 1);
  const x = hashed(seed, product(shape));
  if (name.endsWith('running_var')) return Float32Array.from(x, (v) => 1 + 0.5 * v);
  if (name.endsWith('bn.weight')) return Float32Array.from(x, (v) => 1 + 0.25 * v);
  if (shape.length === 1) return Float32Array.from(x, (v) => 0.125 * v);
  const scale = Math.sqrt(6 / product(shape.slice(1)));
  return Float32Array.from(x, (v) => v * scale);
}

/** Writes the weights as the published ones are named; `change` may alter them. */
export async function writeWeights(
  path: string,
  change: (shapes: Map<string, number[]>) => void = () => {},
): Promise<string> {
  const { names, shapes } = fixture.json as { names: string[]; shapes: number[][] };
  const wanted = new Map(names.map((name, i) => [name, shapes[i]]));
  change(wanted);
  const tensors = Object.fromEntries(
    [...wanted].map(([name, shape]) => [name, tensor(values(names.indexOf(name), name, shape), { shape })]),
  );
  await saveSafetensors(path, tensors);
  for (const one of Object.values(tensors)) one.dispose();
  return path;
}

/** Images u8 [N, H, W, 3]: noise on waves. */
export function images(seed: number, count: number, height: number, width: number): Uint8Array {
  const noise = hashed(seed, count * height * width * 3);
  const data = new Uint8Array(noise.length);
  let i = 0;
  for (let n = 0; n < count; n++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        for (let c = 0; c < 3; c++, i++) {
          const waves = 80 * Math.sin(((n + 1) * (y + 1)) / (7 + c)) + 80 * Math.cos(((n + 2) * (x + 1)) / 11);
          data[i] = Math.min(Math.max(128 + Math.floor(waves) + Math.floor(40 * noise[i]), 0), 255);
        }
  return data;
}
