/** Checks shared by the operations; each throws a typed error that names the operation and the argument. */
import type { DType } from '../dtype.js';
import { DeviceError, DTypeError, OptionError, ShapeError } from '../errors.js';
import { format, type Shape } from '../shape.js';
import type { Tensor } from '../tensor.js';

type Named = Readonly<Record<string, Tensor | undefined>>;

/** All given tensors are of `dtype` and on one device. */
export function checkTensors(op: string, tensors: Named, dtype: DType = 'f32'): void {
  let first: Tensor | undefined;
  for (const name in tensors) {
    const tensor = tensors[name];
    if (tensor === undefined) continue;
    if (tensor.dtype === undefined) throw new OptionError(`${op}: ${name} is not a tensor.`);
    if (tensor.dtype !== dtype) {
      throw new DTypeError(`${op}: ${name} is ${tensor.dtype}, expected ${dtype} (convert with .to('${dtype}')).`);
    }
    if (first && tensor.device !== first.device) {
      throw new DeviceError(`${op}: ${name} is on ${tensor.device}, the others on ${first.device}.`);
    }
    first ??= tensor;
  }
}

/** `tensor` has exactly this shape; -1 entries match anything. */
export function checkShapeOf(op: string, name: string, tensor: Tensor | undefined, expected: Shape): void {
  if (!tensor) return;
  const { shape } = tensor;
  if (shape.length !== expected.length || expected.some((n, i) => n >= 0 && n !== shape[i])) {
    throw new ShapeError(`${op}: ${name} is ${format(shape)}, expected ${format(expected).replaceAll('-1', '*')}.`);
  }
}

/** `value` is an integer not below `least`. */
export function checkInteger(op: string, name: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new OptionError(`${op}: ${name} is ${value}, expected an integer of at least ${least}.`);
  }
}
