/** DiT against facebookresearch/DiT (goldens dit*): forward, every gradient, guidance, keys; and what sets it apart. */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { DiT } from '../../lib/models/dit.js';
import { LatentDiffiT } from '../../lib/models/latent-diffit.js';
import { noGrad } from '../../lib/scope.js';
import { tensor, zeros } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, loadFixture, toTensor, toTensors, withoutLeaks } from '../helpers.js';
import { checkGradients } from '../nn/check.js';
import { configOf } from './latent.js';

const fixture = loadFixture('goldens/dit.safetensors');
const weights = fixture.group('sd.');

t.test('forward, every gradient, and guidance equal the original', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      const model = new DiT(configOf(fixture)).eval();
      model.loadStateDict(toTensors(weights));
      const x = toTensor(fixture.tensor('in.x'), { requiresGrad: true });
      const y = model.forward(x, toTensor(fixture.tensor('in.t')).to('f32'), toTensor(fixture.tensor('in.y')));
      assertClose(t, (await y.data()) as Float32Array, fixture.f32('out'), 5e-6, 'out');
      y.backward(toTensor(fixture.tensor('in.dout')));
      const grads = loadFixture('goldens/dit_grads.safetensors').group('grad.');
      const { x: gradient, pos_embed: _, ...parameters } = grads;
      assertClose(t, (await x.grad?.data()) ?? [], gradient.data, 1e-5, 'gradient of x');
      x.grad?.dispose();
      await checkGradients(t, model, parameters, 2e-5);

      await noGrad(async () => {
        const [images, labels] = ['cfg.x', 'cfg.y'].map((key) => toTensor(fixture.tensor(key)));
        const time = toTensor(fixture.tensor('cfg.t')).to('f32');
        const options = { cfgScale: fixture.json.cfg_scale, scalePow: 'constant' } as const;
        const guided = await model.forwardWithCfg(images, time, labels, options).data();
        assertClose(t, guided as Float32Array, fixture.f32('cfg.out'), 5e-6, 'guided');

        const pair = images.slice(0, 0, 2);
        const whole = (await model.forward(pair, tensor([37, 37]), labels).data()) as Float32Array;
        using network = model.conditionOn([3, 37], labels);
        assertClose(t, (await network.forward(pair, 1).data()) as Float32Array, whole, 1e-6, 'conditionOn');
      });
      model.dispose();
    });
  }),
);

t.test("the original's keys, in its order", async (t) => {
  const model = new DiT(configOf(fixture));
  const own = Object.entries(model.stateDict()).map(([name, { shape }]) => [name, [...shape]]);
  // The fixture's file is sorted by name, so is this.
  const expected = Object.entries(weights).map(([name, { shape }]) => [name, shape]);
  t.strictSame(own.sort(), expected.sort());
  const order = Object.keys(model.stateDict()).filter((name) => !/blocks\.[1-9]/.test(name));
  t.strictSame(
    order.map((name) => name.replace(/\.(weight|bias)$/, '')).filter((name, i, all) => name !== all[i - 1]),
    [
      'pos_embed',
      'x_embedder.proj',
      't_embedder.mlp.0',
      't_embedder.mlp.2',
      'y_embedder.embedding_table',
      'blocks.0.attn.qkv',
      'blocks.0.attn.proj',
      'blocks.0.mlp.fc1',
      'blocks.0.mlp.fc2',
      'blocks.0.adaLN_modulation.1',
      'final_layer.linear',
      'final_layer.adaLN_modulation.1',
    ],
  );
  for (const name of ['blocks.0.adaLN_modulation.1.weight', 'final_layer.adaLN_modulation.1.weight']) {
    const data = (await model.stateDict()[name].data()) as Float32Array;
    t.ok(
      data.every((v) => v === 0),
      `${name} starts at 0`,
    );
  }
  model.dispose();
});

t.test('it is one class away from DiffiT, and 675M parameters large at XL/2', async (t) => {
  const config = configOf(fixture);
  const [dit, diffit] = [new DiT(config), new LatentDiffiT(config)];
  t.strictSame(dit.config, diffit.config);
  await assertFails(t, () => new DiT({ ...config, hidden: 3 } as typeof config), 'OptionError', /DiT: unknown option/);
  await assertFails(t, () => dit.loadStateDict(diffit.stateDict()), 'StateDictError', /missing .*adaLN_modulation/);
  await assertFails(t, () => dit.forward(zeros([1, 4, 4, 4]), zeros([1])), 'ShapeError', /DiT: x is \[1, 4, 4, 4\]/);
  const y = tensor([1], { dtype: 'i64' });
  t.strictSame(dit.forward(zeros([1, 4, 8, 8]), zeros([1]), y).shape, [1, 8, 8, 8]);
  // facebookresearch/DiT's DiT-XL/2: 675,129,632 trainable numbers at depth 28; a block here has 21M.
  using one = new DiT({ depth: 1 });
  const block = [...one.namedParameters()].filter(([name]) => name.startsWith('blocks.0.'));
  const size = block.reduce((sum, [, { size }]) => sum + size, 0);
  t.equal(one.parameterCount() + 27 * size, 675_129_632 - 256 * 1152);
  for (const each of [dit, diffit]) each.dispose();
});
