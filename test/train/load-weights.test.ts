/** Weights from a file straight into a model: equal, checked to be finite, and nothing changed by a wrong file. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import '../../lib/autograd.js';
import { readSafetensorsHeader, saveSafetensors } from '../../lib/io/index.js';
import { ImageDiffiT } from '../../lib/models/index.js';
import { forLoading } from '../../lib/nn/init.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor } from '../../lib/tensor.js';
import { loadModel, loadWeights, saveModel } from '../../lib/train/index.js';
import { assertClose, withoutLeaks } from '../helpers.js';

const config = {
  imgResolution: 8,
  inChannels: 3,
  baseChannels: 8,
  channelMult: [1, 2],
  numBlocks: 1,
  windowSize: 4,
  timeDim: 16,
};

/** A model whose head is not zero, saved; its output for one input. */
async function saved(folder: string): Promise<{ path: string; expected: Float32Array }> {
  manualSeed(7);
  using model = new ImageDiffiT(config).eval();
  scope(() => model.loadStateDict({ 'head.conv.weight': randn([3, 8, 3, 3]) }, { strict: false }));
  const path = join(folder, 'model.safetensors');
  await saveModel(path, model);
  return { path, expected: await output(model) };
}

const output = (model: ImageDiffiT): Promise<Float32Array> =>
  scope(async () => {
    const [x, c] = [randn([2, 3, 8, 8], { seed: 1 }), tensor(new Float32Array([0.3, -0.5]))];
    return (await noGrad(() => model.forward(x, c)).data()) as Float32Array;
  });

t.test('a model made for loading computes the same', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const { path, expected } = await saved(t.testdir());
    using model = forLoading(() => new ImageDiffiT(config)).eval();
    t.ok(
      (await output(model)).every((y) => y === 0),
      'zeros before',
    );
    await loadWeights(model, path);
    assertClose(t, await output(model), expected, 0, 'the same bits');

    const { model: half } = await loadModel(path, { weights: 'bf16' });
    const state = half.stateDict();
    t.equal(state['encoder.0.blocks.0.mlp.fc1.weight'].dtype, 'bf16');
    t.equal(state['encoder.0.blocks.0.mlp.fc1.bias'].dtype, 'f32');
    for (const entry of Object.values(state)) entry.dispose();
    assertClose(t, await output(half as ImageDiffiT), expected, 2e-2, 'bf16 weights: the same but for rounding');
    half.dispose();
  }),
);

t.test('NaN and infinite weights are named', async (t) => {
  const { path } = await saved(t.testdir());
  const { entries, dataStart } = await readSafetensorsHeader(path);
  const bytes = readFileSync(path);
  const damage = (name: string, index: number, value: number): void => {
    const entry = entries.find((e) => e.name === name);
    bytes.writeFloatLE(value, dataStart + (entry?.begin ?? 0) + 4 * index);
  };
  damage('tokenizer.weight', 5, Number.NaN);
  damage('head.norm.bias', 7, Number.POSITIVE_INFINITY);
  writeFileSync(path, bytes);
  await t.rejects(loadModel(path), {
    name: 'FileFormatError',
    message: /NaN or infinite: (head.norm.bias, tokenizer.weight|tokenizer.weight, head.norm.bias)\./,
  });
});

t.test("another model's weights change nothing, and the error lists all keys", (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const folder = t.testdir();
    const { path } = await saved(folder);
    using other = new ImageDiffiT({ ...config, channelMult: [1, 1] }).eval();
    const before = await output(other);
    await t.rejects(loadWeights(other, path), { name: 'StateDictError', message: /misshapen \(encoder.1/ });
    const partial = join(folder, 'partial.safetensors');
    await scope(() => saveSafetensors(partial, { extra: randn([2]), 'tokenizer.bias': randn([8]) }));
    await t.rejects(loadWeights(other, partial), { name: 'StateDictError', message: /1 unexpected \(extra\)/ });
    assertClose(t, await output(other), before, 0, 'nothing changed');
    await loadWeights(other, partial, { strict: false });
    writeFileSync(partial, readFileSync(partial).subarray(0, -4));
    await t.rejects(loadWeights(other, partial, { strict: false }), { name: 'FileFormatError' });
    const signal = AbortSignal.abort(new Error('stop'));
    using same = new ImageDiffiT(config);
    await t.rejects(loadWeights(same, path, { signal }), { message: 'stop' });
  }),
);
