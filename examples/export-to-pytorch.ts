/**
 * A trained model to PyTorch: its weights in PyTorch's names and layouts, and inputs with the outputs they must give.
 *
 *     npx tsx export-to-pytorch.ts [--checkpoint model.safetensors] [--out pytorch]
 *     python3 load_in_pytorch.py pytorch
 *
 * Without --checkpoint it exports the weights that come with the package. `pytorch/model.safetensors` has the network's configuration in its
 * metadata; load_in_pytorch.py builds the same network as a torch.nn.Module from it, loads the weights with load_state_dict (strict), and compares.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { io, models, noGrad, randn, scope, tensor, train } from 'diffit';

const { values } = parseArgs({
  options: {
    checkpoint: { type: 'string', default: train.shippedWeights('mnist') },
    out: { type: 'string', default: 'pytorch' },
  },
});
const { model, description } = await train.loadModel(values.checkpoint);
if (!(model instanceof models.ImageDiffiT)) throw new Error(`${values.checkpoint} is not an image-space model.`);
await mkdir(values.out, { recursive: true });
await train.saveModel(join(values.out, 'model.safetensors'), model, { description });

const { inChannels, imgResolution: side, numClasses } = model.config;
const batch = 4;
await scope(async () => {
  const x = randn([batch, inChannels, side, side], { seed: 1, stream: 0 });
  const cNoise = tensor([-1.5, -0.5, 0.2, 1.1]); // ln(sigma) / 4 for sigma from 0.002 to 80
  const labels =
    numClasses > 0 ? tensor(BigInt64Array.from({ length: batch }, (_, i) => BigInt(i % numClasses))) : undefined;
  const output = noGrad(() => model.forward(x, cNoise, labels));
  const check = { x, c_noise: cNoise, ...(labels && { labels }), output };
  await io.saveSafetensors(join(values.out, 'check.safetensors'), check);
});
const names = model.stateNames();
console.log(`${names.length} tensors, ${model.parameterCount()} parameters, ${names[0]} ... ${names.at(-1)}`);
console.log(`${join(values.out, 'model.safetensors')}, ${join(values.out, 'check.safetensors')}`);
