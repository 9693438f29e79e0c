/** Every operation on every device against PyTorch (ops.safetensors) and torch.nn (goldens/convs_norms). */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import type { Tensor } from '../../lib/tensor.js';
import { type FixtureTensor, forEachDevice, loadFixture, nhwc } from '../helpers.js';
import { checkOp, type OpCase } from './check.js';

type Inputs = Record<string, Tensor>;
// biome-ignore lint/suspicious/noExplicitAny: each case has its own parameters
type Parameters = any;

const camel = (name: string): string => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
const activationOf = (name: string): F.Activation | undefined =>
  name === 'none' ? undefined : (camel(name) as F.Activation);

const { add, sub, mul, div, maximum, minimum, pow, equal, less, sum, mean, max, argmax } = F;
type Binary = (a: Tensor, b: Tensor) => Tensor;
const binaries: Record<string, Binary> = { add, sub, mul, div, maximum, minimum, pow, equal, less };
const reductions: Record<string, (x: Tensor, axis: number) => Tensor> = { sum, mean, max, argmax };

/** How each `op` of ops.safetensors is called. */
const calls: Record<string, (inputs: Inputs, parameters: Parameters) => Tensor> = {
  unary: ({ x }, { kind }) => F.unary(camel(kind) as F.UnaryKind, x),
  binary: ({ a, b }, { kind }) => binaries[kind](a, b),
  where: ({ condition, a, b }) => F.where(condition, a, b),
  clamp: ({ x }, { low, high }) => F.clamp(x, low, high),
  affine: ({ x }, { scale, shift }) => F.affine(x, scale, shift),
  linear_combination: ({ a, b, c }, { coefficients: [ca, cb, cc] }) =>
    F.linearCombination([
      [ca, a],
      [cb, b],
      [cc, c],
    ]),
  cast: ({ x }, { dtype }) => (dtype === 'bf16' || dtype === 'f16' ? x.to(dtype).to('f32') : x.to(dtype)),
  reduce: ({ x }, { kind, axis }) => reductions[kind](x, axis),
  softmax: ({ x }) => F.softmax(x),
  cross_entropy: ({ logits, labels }) => F.crossEntropy(logits, labels),
  matmul: ({ a, b }, { transA, transB }) => F.matmul(a, b, { transA, transB }),
  linear: ({ x, w, b, residual }, { activation }) =>
    F.linear(x, w, b, { activation: activationOf(activation), residual }),
  concat: (inputs, { axis }) => F.concat(Object.values(inputs), axis),
  slice: ({ x }, { axis, start, stop }) => F.slice(x, axis, start, stop),
  permute: ({ x }, { axes }) => F.permute(x, axes),
  pad: ({ x }, { padding }) => F.pad(x, padding),
  embedding: ({ table, ids }) => F.embedding(table, ids),
  upsample2x: ({ x }) => F.upsample2x(x),
  conv2d: ({ x, w, b }, { stride, pad }) => F.conv2d(x, w, b, { stride, padding: pad }),
  layer_norm: ({ x, w, b }, { eps }) => F.layerNorm(x, { weight: w, bias: b, eps }),
  group_norm: ({ x, w, b }, { groups, eps, silu }) => F.groupNorm(x, { groups, weight: w, bias: b, eps, silu }),
  attention: ({ qkv, time, table }, { heads, window }) => F.attention(qkv, { heads, window, time, table }),
};

/** Kinds whose tails are differences of nearly equal numbers: absolute errors below 1; all other kinds relative ones. */
const saturating = new Set(['tanh', 'sigmoid', 'gelu_tanh', 'gelu_erf']);

const ops = loadFixture('ops.safetensors');
const cases: OpCase[] = Object.entries<Parameters>(ops.json.cases).map(
  ([name, { op, inputs, grads, ...parameters }]) => ({
    name,
    inputs: Object.fromEntries(inputs.map((key: string) => [key, ops.tensor(`${name}.in.${key}`)])),
    run: (tensors) => calls[op](tensors, parameters),
    out: ops.tensor(`${name}.out`),
    dout: grads.length > 0 ? ops.tensor(`${name}.dout`) : undefined,
    grads: ops.group(`${name}.grad.`),
    floor: op === 'unary' ? (saturating.has(parameters.kind) ? 1 : 1e-30) : undefined,
  }),
);

/** How each layer of goldens/convs_norms is called; `images`: activations are NCHW there. */
const layers: Record<string, { images?: boolean; run: (inputs: Inputs, attrs: Parameters) => Tensor }> = {
  conv3x3_s1: { images: true, run: ({ x, weight, bias }) => F.conv2d(x, weight, bias, { padding: 1 }) },
  conv3x3_s2: { images: true, run: ({ x, weight, bias }) => F.conv2d(x, weight, bias, { stride: 2, padding: 1 }) },
  conv3x3_s2_asym: {
    images: true,
    run: ({ x, weight, bias }) => F.conv2d(x, weight, bias, { stride: 2, padding: [0, 1, 1, 0] }),
  },
  conv3x3_nobias: { images: true, run: ({ x, weight }) => F.conv2d(x, weight, undefined, { padding: 1 }) },
  conv1x1: { images: true, run: ({ x, weight, bias }) => F.conv2d(x, weight, bias) },
  patch_embed: { run: ({ x, weight, bias }) => F.conv2d(x, weight, bias, { stride: 2 }).reshape([2, 35, 24]) },
  upsample_nearest2: { images: true, run: ({ x }) => F.upsample2x(x) },
  silu: { run: ({ x }) => F.silu(x) },
  gelu_tanh: { run: ({ x }) => F.gelu(x) },
  gelu_erf: { run: ({ x }) => F.gelu(x, { approximate: 'none' }) },
  softmax: { run: ({ x }) => F.softmax(x) },
  softmax_big: { run: ({ x }) => F.softmax(x) },
  embedding: { run: ({ weight, ids }) => F.embedding(weight, ids) },
  linear: { run: ({ x, weight, bias }) => F.linear(x, weight, bias) },
  linear_nobias: { run: ({ x, weight }) => F.linear(x, weight) },
};
for (const name of ['layer_norm', 'layer_norm_affine', 'layer_norm_small']) {
  layers[name] = { run: ({ x, weight, bias }, { eps }) => F.layerNorm(x, { weight, bias, eps }) };
}
for (const name of [
  'group_norm_eps1e-5',
  'group_norm_eps1e-6',
  'group_norm_silu',
  'group_norm_small',
  'group_norm_g2',
]) {
  layers[name] = {
    images: true,
    run: ({ x, weight, bias }, { groups, eps }) =>
      F.groupNorm(x, { groups, weight, bias, eps, silu: name === 'group_norm_silu' }),
  };
}

const golden = loadFixture('goldens/convs_norms.safetensors');
const { conv_transpose4x4_s2: transposed, avg_pool2: _pooling, ...torchOps } = golden.json.ops;
for (const [name, { attrs }] of Object.entries<Parameters>(torchOps)) {
  const { images, run } = layers[name];
  const here = (value: FixtureTensor, spatial: boolean | undefined): FixtureTensor =>
    spatial && value.shape.length === 4 ? nhwc(value.data, value.shape) : value;
  /** Conv weights always turn; activations where they are NCHW, and patch_embed's input. */
  const group = (part: Record<string, FixtureTensor>): Record<string, FixtureTensor> =>
    Object.fromEntries(
      Object.entries(part).map(([key, value]) => [
        key,
        here(value, key === 'weight' || images || name === 'patch_embed'),
      ]),
    );
  const { weight, bias } = golden.group(`${name}.`);
  cases.push({
    name: `torch ${name}`,
    inputs: group({ ...golden.group(`${name}.in.`), ...(weight && { weight }), ...(bias && { bias }) }),
    run: (inputs) => run(inputs, attrs),
    out: here(golden.tensor(`${name}.out`), images),
    dout: here(golden.tensor(`${name}.dout`), images),
    grads: group(golden.group(`${name}.grad.`)),
  });
}

// A transposed convolution is a convolution's gradient: with weights [in, out, k, k] read as [O, I, k, k].
{
  const name = 'conv_transpose4x4_s2';
  const image = (key: string) => nhwc(golden.f32(`${name}.${key}`), golden.tensor(`${name}.${key}`).shape);
  const out = image('out');
  const bias = golden.f32(`${name}.bias`);
  cases.push({
    name: `torch ${name} as a gradient, ${transposed.formula}`,
    inputs: { x: { shape: out.shape, data: new Float32Array(out.data.length) }, w: image('weight') },
    run: ({ x, w }) => F.conv2d(x, w, undefined, { stride: 2, padding: 1 }),
    out: { shape: image('in.x').shape, data: new Float32Array(image('in.x').data.length) },
    dout: image('in.x'),
    grads: { x: { shape: out.shape, data: out.data.map((v, i) => v - bias[i % bias.length]) } },
  });
}

t.test('operations equal PyTorch', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const c of cases) await checkOp(t, device, c);
  }),
);
