/**
 * TensorFlow.js' side of the CPU benchmark (bench/cpu/station.ts): latent DiffiT written in its operations, on the WebAssembly backend
 * with SIMD. Its threads do not work in Node ("WASM_HAS_MULTITHREAD_SUPPORT" is false there), so it has one.
 */
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { readTensors, writeTensors } from '../cpu/files.ts';
import { inTurn, serve, stopwatch } from '../cpu/station.ts';

const require = createRequire(import.meta.url);
const tf = require('@tensorflow/tfjs-core');
const wasm = require('@tensorflow/tfjs-backend-wasm');
wasm.setWasmPaths(`${dirname(require.resolve('@tensorflow/tfjs-backend-wasm'))}/`);
if (!(await tf.setBackend('wasm'))) throw new Error('the wasm backend of tfjs did not start');
await tf.ready();

let task;

/** [rows, in] -> [rows, out]; the weights lie transposed, as the product takes them. */
const linear = (x, { w, b }) => tf.add(tf.matMul(x, w), b);
const silu = (x) => tf.mul(x, tf.sigmoid(x));
const gelu = (x) => {
  const inner = tf.mul(Math.sqrt(2 / Math.PI), tf.add(x, tf.mul(0.044715, tf.mul(x, tf.mul(x, x)))));
  return tf.mul(tf.mul(0.5, x), tf.add(1, tf.tanh(inner)));
};
const layerNorm = (x) => {
  const { mean, variance } = tf.moments(x, -1, true);
  return tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, 1e-6)));
};

/** The weights of a state dict, as this file uses them. */
function load(state, { inputSize, patchSize, depth, numHeads, hiddenSize, inChannels }) {
  const side = inputSize / patchSize;
  const of = (name) => tf.tensor(state[name].data, state[name].shape);
  const layer = (name) => {
    const w = of(`${name}.weight`);
    return { w: tf.transpose(tf.reshape(w, [w.shape[0], -1])), b: of(`${name}.bias`) };
  };
  const index = new Int32Array(side ** 4);
  for (let i = 0; i < side ** 2; i++)
    for (let j = 0; j < side ** 2; j++) {
      const [dy, dx] = [Math.floor(i / side) - Math.floor(j / side), (i % side) - (j % side)];
      index[i * side ** 2 + j] = (dy + side - 1) * (2 * side - 1) + dx + side - 1;
    }
  const block = (name) => {
    const bias = tf.gather(of(`${name}.attn.relative_position_bias_table`), tf.tensor1d(index, 'int32'));
    return {
      bias: tf.expandDims(tf.transpose(tf.reshape(bias, [side ** 2, side ** 2, numHeads]), [2, 0, 1]), 0),
      ...Object.fromEntries(
        ['attn.qkv', 'attn.qkv_temb', 'attn.proj', 'mlp.fc1', 'mlp.fc2'].map((l) => [l, layer(`${name}.${l}`)]),
      ),
    };
  };
  return {
    sizes: { side, patchSize, numHeads, hiddenSize, inChannels },
    embed: layer('x_embedder.proj'),
    positions: of('pos_embed'),
    time: [layer('t_embedder.mlp.0'), layer('t_embedder.mlp.2')],
    labels: of('y_embedder.embedding_table.weight'),
    blocks: Array.from({ length: depth }, (_, i) => block(`blocks.${i}`)),
    last: layer('final_layer.linear'),
  };
}

function forward({ sizes, embed, positions, time, labels, blocks, last }, { x, t, y }) {
  const { side, patchSize, numHeads, hiddenSize, inChannels } = sizes;
  const [batch, n, d] = [x.shape[0], side ** 2, hiddenSize / numHeads];
  const frequencies = tf.exp(tf.mul(-Math.log(10000) / 128, tf.range(0, 128)));
  const angles = tf.mul(tf.expandDims(t, 1), tf.expandDims(frequencies, 0));
  const features = tf.concat([tf.cos(angles), tf.sin(angles)], 1);
  const token = tf.add(linear(silu(linear(features, time[0])), time[1]), tf.gather(labels, y));
  const rows = (of) => tf.reshape(of, [batch * n, -1]);
  const patches = tf.transpose(
    tf.reshape(x, [batch, inChannels, side, patchSize, side, patchSize]),
    [0, 2, 4, 1, 3, 5],
  );
  let h = tf.reshape(linear(rows(patches), embed), [batch, n, hiddenSize]);
  h = tf.add(h, positions);
  for (const block of blocks) {
    const qkv = tf.add(
      tf.reshape(linear(rows(layerNorm(h)), block['attn.qkv']), [batch, n, 3 * hiddenSize]),
      tf.expandDims(linear(token, block['attn.qkv_temb']), 1),
    );
    const [q, k, v] = tf
      .split(qkv, 3, 2)
      .map((p) => tf.transpose(tf.reshape(p, [batch, n, numHeads, d]), [0, 2, 1, 3]));
    const logits = tf.add(tf.mul(tf.matMul(q, k, false, true), d ** -0.5), block.bias);
    const attended = tf.transpose(tf.matMul(tf.softmax(logits), v), [0, 2, 1, 3]);
    h = tf.add(h, tf.reshape(linear(rows(attended), block['attn.proj']), h.shape));
    const hidden = gelu(linear(rows(layerNorm(h)), block['mlp.fc1']));
    h = tf.add(h, tf.reshape(linear(hidden, block['mlp.fc2']), h.shape));
  }
  const channels = 2 * inChannels;
  const out = tf.reshape(linear(silu(rows(layerNorm(h))), last), [batch, side, side, patchSize, patchSize, channels]);
  return tf.reshape(tf.transpose(out, [0, 5, 1, 3, 2, 4]), [batch, channels, side * patchSize, side * patchSize]);
}

async function prepare({ work, weights, inputs, output }) {
  const model = load(readTensors(weights), { patchSize: 2, inChannels: 4, ...work.config });
  const given = readTensors(inputs);
  const [x, t] = ['x', 't'].map((name) => tf.tensor(given[name].data, given[name].shape));
  const y = tf.tensor1d(Int32Array.from(given.y.data, Number), 'int32');
  const compute = () => tf.tidy(() => forward(model, { x, t, y }));
  const first = compute();
  writeTensors(output, { y: { shape: first.shape, data: first.dataSync() } });
  first.dispose();
  // Operations are done when they return.
  task = () => compute().dispose();
}

await serve(
  { tfjs: tf.version_core },
  {
    prepare,
    time: (asked) => stopwatch(inTurn(task), asked),
    release() {
      task = undefined;
      tf.disposeVariables();
      tf.engine().reset?.();
    },
  },
);
