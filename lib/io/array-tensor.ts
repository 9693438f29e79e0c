/** Between arrays in host memory and tensors. */
import type { DeviceName } from '../device.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { Tensor } from '../tensor.js';
import { type HostArray, hostArray, hostValues } from './array.js';

/** Options of {@link toTensor}. */
export interface ToTensorOptions {
  /** Where the tensor is made. Default: defaultDevice(). */
  device?: DeviceName;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({ device: is.name.optional() } satisfies Fields<ToTensorOptions>),
);

/**
 * A tensor with the array's values; f64 is rounded to f32.
 *
 * @throws {ShapeError} Bytes that do not fill the shape.
 * @throws {OptionError} An unknown option or device name.
 */
export function toTensor(array: HostArray, options: ToTensorOptions = {}): Tensor {
  const { device } = parseOptions(optionsSchema, options, 'toTensor');
  const { shape } = array;
  if (array.dtype !== 'f64') return Tensor.fromBytes(array.bytes, { shape, dtype: array.dtype, device });
  const bytes = new Uint8Array(Float32Array.from(hostValues(array) as Float64Array).buffer);
  return Tensor.fromBytes(bytes, { shape, dtype: 'f32', device });
}

/** The tensor's values in host memory; bf16, which NumPy does not know, is widened to f32. */
export async function fromTensor(tensor: Tensor): Promise<HostArray> {
  const { dtype, shape } = tensor;
  if (dtype === 'bf16') return hostArray((await tensor.data()) as Float32Array, shape);
  return { dtype, shape, bytes: await tensor.bytes() };
}
