/// <reference lib="esnext.disposable" preserve="true" />
/**
 * diffit: DiffiT diffusion vision transformers for Node. A typed tensor library with autograd, the models, diffusion
 * training and sampling. Importing it computes nothing and opens no device.
 */
import './autograd.js';

export { checkpoint } from './autograd.js';
export * as data from './data/index.js';
export {
  cpuVariants,
  type DeviceDescription,
  type DeviceName,
  defaultDevice,
  devices,
  memory,
  memoryOwners,
  setDefaultDevice,
  setMemoryLimit,
  setNumThreads,
  synchronize,
  timeDevice,
  trimMemory,
} from './device.js';
export * as diffusion from './diffusion/index.js';
export type { DType, TensorData } from './dtype.js';
export {
  AutogradError,
  DataError,
  DeviceError,
  DiffitError,
  DisposedError,
  DTypeError,
  FileError,
  FileFormatError,
  type MemoryRequest,
  NonFiniteError,
  OptionError,
  OutOfMemoryError,
  ShapeError,
  StateDictError,
  TrainError,
} from './errors.js';
export { graphStats, setGraphs } from './graph.js';
export * as io from './io/index.js';
export * as metrics from './metrics/index.js';
export * as models from './models/index.js';
export type { GraphStats, MemoryStats } from './native.js';
export * as nn from './nn/index.js';
export { Generator, manualSeed, type RandomKey, type RandomOptions, rand, randn } from './ops/random.js';
export * as optim from './optim/index.js';
export { autocast, keep, type LowPrecision, noGrad, scope } from './scope.js';
export type { Shape } from './shape.js';
export {
  arange,
  type FromBytesOptions,
  full,
  type NestedNumbers,
  ones,
  Tensor,
  type TensorOptions,
  tensor,
  zeros,
} from './tensor.js';
export * as train from './train/index.js';
