/**
 * diffit: DiffiT diffusion vision transformers for Node. A typed tensor library with autograd, the models, diffusion
 * training and sampling. Importing it computes nothing and opens no device.
 */
import './autograd.js';

export { checkpoint } from './autograd.js';
export { type DeviceDescription, type DeviceName, cpuVariants, defaultDevice, devices, memory, setDefaultDevice, setMemoryLimit, setNumThreads, synchronize, trimMemory } from './device.js';
export type { DType, TensorData } from './dtype.js';
export * from './errors.js';
export { Generator, manualSeed, rand, randn } from './ops/random.js';
export { keep, noGrad, scope } from './scope.js';
export type { Shape } from './shape.js';
export { arange, full, ones, Tensor, type TensorOptions, tensor, zeros } from './tensor.js';

export * as data from './data/index.js';
export * as diffusion from './diffusion/index.js';
export * as io from './io/index.js';
export * as models from './models/index.js';
export * as nn from './nn/index.js';
export * as optim from './optim/index.js';
export * as train from './train/index.js';
