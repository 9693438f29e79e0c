/** All differentiable operations as functions. */
export { type AttentionOptions, attention } from '../ops/attention.js';
export { type Conv2dOptions, conv2d } from '../ops/conv.js';
export {
  add,
  affine,
  clamp,
  cos,
  div,
  equal,
  gelu,
  less,
  linearCombination,
  maximum,
  minimum,
  mul,
  pow,
  relu,
  sigmoid,
  silu,
  sin,
  sub,
  tanh,
  type UnaryKind,
  unary,
  where,
} from '../ops/elementwise.js';
export { concat, embedding, pad, permute, reshape, slice, upsample2x } from '../ops/index.js';
export {
  type Activation,
  type LinearOptions,
  type LinearWeights,
  linear,
  type MatmulOptions,
  type MLPOptions,
  matmul,
  mlp,
} from '../ops/linear.js';
export { type Affine, type GroupNormOptions, groupNorm, layerNorm } from '../ops/norm.js';
export { type Pool2dOptions, pool2d } from '../ops/pool.js';
export { dropout } from '../ops/random.js';
export { argmax, crossEntropy, max, mean, softmax, sum } from '../ops/reduce.js';
