/** Between arrays in host memory and tensors. */
import type { DeviceName } from '../device.js';
import { Tensor } from '../tensor.js';
import { type HostArray, hostArray, hostValues } from './array.js';

/** A tensor with the array's values; f64 is rounded to f32. */
export function toTensor(array: HostArray, options: { device?: DeviceName } = {}): Tensor {
  const { shape } = array;
  if (array.dtype !== 'f64') return Tensor.fromBytes(array.bytes, { shape, dtype: array.dtype, ...options });
  const bytes = new Uint8Array(Float32Array.from(hostValues(array) as Float64Array).buffer);
  return Tensor.fromBytes(bytes, { shape, dtype: 'f32', ...options });
}

/** The tensor's values in host memory; bf16, which NumPy does not know, is widened to f32. */
export async function fromTensor(tensor: Tensor): Promise<HostArray> {
  const { dtype, shape } = tensor;
  if (dtype === 'bf16') return hostArray((await tensor.data()) as Float32Array, shape);
  return { dtype, shape, bytes: await tensor.bytes() };
}
