/** The samplers on a real LatentDiffiT: conditioned once or at every step, the images are the same, and nothing is left. */
import t from 'tap';
import '../../lib/autograd.js';
import { cpuVariants, defaultDevice, setDefaultDevice } from '../../lib/device.js';
import { GaussianDiffusion, type GaussianNetwork, sampleDdpm, sampleDpmSolver } from '../../lib/diffusion/index.js';
import { DiT, LatentDiffiT } from '../../lib/models/index.js';
import { randn } from '../../lib/ops/random.js';
import { scope } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, forEachDevice, loadFixture, toTensors, withoutLeaks } from '../helpers.js';
import { configOf } from '../models/latent.js';

t.test('conditionOn() changes nothing but the work', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      for (const [type, file] of [
        [LatentDiffiT, 'latent_model'],
        [DiT, 'dit'],
      ] as const) {
        const fixture = loadFixture(`goldens/${file}.safetensors`);
        using model = new type(configOf(fixture)).eval();
        scope(() => model.loadStateDict(toTensors(fixture.group('sd.'))));
        const { nullClass } = model;
        const plain: GaussianNetwork = { nullClass, forward: (x, time, y) => model.forward(x, time, y) };
        await scope(async () => {
          const y = tensor(new BigInt64Array([1n, 7n, 3n]));
          const noise = randn([3, 4, 8, 8], { seed: 2 });
          const run = async (
            network: GaussianNetwork,
            options: object,
            sampler = sampleDdpm,
          ): Promise<Float32Array> => {
            const ddpm = new GaussianDiffusion({ respacing: '6' });
            let last: Tensor | undefined;
            for await (const { sample } of sampler(network, noise, { ddpm, y, ...options })) last = sample;
            return (await (last as Tensor).data()) as Float32Array;
          };
          for (const [what, options] of Object.entries({
            unguided: {},
            guided: { cfgScale: 4.4, scalePow: 4 },
            'guided for a while': { cfgScale: 3, guidanceInterval: [100, 600] },
          })) {
            assertClose(t, await run(model, options), await run(plain, options), 2e-6, `${file}, ${what}`);
          }
          const guided = { cfgScale: 2 };
          const solved = await run(model, guided, sampleDpmSolver);
          assertClose(t, solved, await run(plain, guided, sampleDpmSolver), 2e-6, `${file}, DPM-Solver++`);
          const stop = new AbortController();
          const ddpm = new GaussianDiffusion({ respacing: '6' });
          const samples = sampleDdpm(model, noise, { ddpm, y, cfgScale: 2, signal: stop.signal });
          await samples.next();
          stop.abort();
          await t.rejects(samples.next(), { name: 'AbortError' });
        });
      }
    });
  }),
);

t.test('a model on another device than the default one is conditioned there', async (t) => {
  const before = defaultDevice();
  for (const device of cpuVariants()) {
    setDefaultDevice(device);
    const fixture = loadFixture('goldens/latent_model.safetensors');
    using model = new LatentDiffiT(configOf(fixture)).eval();
    scope(() => model.loadStateDict(toTensors(fixture.group('sd.'))));
    for (const other of cpuVariants()) {
      setDefaultDevice(other);
      await scope(async () => {
        const noise = randn([1, 4, 8, 8], { seed: 2, device });
        const y = tensor([7], { dtype: 'i64', device });
        const ddpm = new GaussianDiffusion({ respacing: '2' });
        for await (const { sample } of sampleDdpm(model, noise, { ddpm, y, cfgScale: 2 })) {
          t.ok(sample.device === device && (await sample.data()).every(Number.isFinite), `${device} under ${other}`);
        }
      });
    }
    setDefaultDevice(before);
  }
});
