/** Checks shared by the operations; each throws a typed error that names the operation and the argument. */
import type { DeviceName } from '../device.js';
import { type DType, isFloat } from '../dtype.js';
import { DeviceError, DTypeError, OptionError, ShapeError } from '../errors.js';
import { unknownOption } from '../option-problems.js';
import { format, type Shape } from '../shape.js';
import type { Tensor } from '../tensor.js';

type Named = Readonly<Record<string, Tensor | undefined>>;

/** All given tensors are alive, of `dtype` and on one device (`device`, when it is known already). */
export function checkTensors(op: string, tensors: Named, dtype: DType = 'f32', device?: DeviceName): void {
  let expected = device;
  for (const name in tensors) {
    const tensor = tensors[name];
    if (tensor !== undefined) expected = checkTensor(op, name, tensor, dtype, expected);
  }
}

/** As {@link checkTensors}, for tensors that may each be f32, bf16 or f16. */
export function checkFloats(op: string, tensors: Named, device?: DeviceName): void {
  let expected = device;
  for (const name in tensors) {
    const tensor = tensors[name];
    if (tensor === undefined) continue;
    expected = checkTensor(op, name, tensor, isFloat(tensor.dtype) ? tensor.dtype : 'f32', expected);
  }
}

/** One tensor, as {@link checkTensors} does it; gives its device. */
export function checkTensor(op: string, name: string, tensor: Tensor, dtype: DType, device?: DeviceName): DeviceName {
  if (tensor.dtype === undefined) throw new OptionError(`${op}: ${name} is not a tensor.`);
  if (tensor.dtype !== dtype) {
    throw new DTypeError(`${op}: ${name} is ${tensor.dtype}, expected ${dtype} (convert with .to('${dtype}')).`);
  }
  if (device !== undefined && tensor.device !== device) {
    throw new DeviceError(`${op}: ${name} is on ${tensor.device}, the others on ${device}.`);
  }
  void tensor.id; // throws when it was disposed
  return tensor.device;
}

/** The dtype of a result of these: theirs when they agree, else f32. */
export function promote(first: Tensor, ...others: readonly (Tensor | undefined)[]): DType {
  return others.every((other) => other === undefined || other.dtype === first.dtype) ? first.dtype : 'f32';
}

/** `tensor` has exactly this shape; -1 entries match anything. */
export function checkShapeOf(op: string, name: string, tensor: Tensor | undefined, expected: Shape): void {
  if (!tensor) return;
  const { shape } = tensor;
  let fits = shape.length === expected.length;
  for (let i = 0; fits && i < expected.length; i++) fits = expected[i] < 0 || expected[i] === shape[i];
  if (!fits) {
    throw new ShapeError(`${op}: ${name} is ${format(shape)}, expected ${format(expected).replaceAll('-1', '*')}.`);
  }
}

/** `options` is an object without other keys than `known`: the cheap check of what is called often. */
export function checkKeys(op: string, options: object, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null) {
    throw new OptionError(`${op}: expected an object of options, got ${String(options)}.`);
  }
  for (const key in options) {
    if (!known.includes(key)) throw new OptionError(`${op}: ${unknownOption(key, key, known)}.`);
  }
}

/** `value` is an integer not below `least`. */
export function checkInteger(op: string, name: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new OptionError(`${op}: ${name} is ${value}, expected an integer of at least ${least}.`);
  }
}
