/** Images to latents and back into batches: what the shards hold, resuming, settings that differ, training on them. */
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { type Dataset, LatentLoader, MemoryDataset, mirror, openDataset, openLatents } from '../../lib/data/index.js';
import { loadSafetensors } from '../../lib/io/index.js';
import { AutoencoderKL } from '../../lib/models/index.js';
import { add, affine, mul } from '../../lib/ops/elementwise.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { HostRandom } from '../../lib/random.js';
import { noGrad } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import {
  type EncodeLatentsOptions,
  encodeLatents,
  latentObjective,
  type TensorBatch,
  uploadBatch,
} from '../../lib/train/index.js';
import { assertClose, assertFails, withoutLeaks } from '../helpers.js';

const count = 11;
const bytes = 8 * 12 * 3;

function images(length = count): { dataset: Dataset; pixels: Uint8Array } {
  const random = new HostRandom(5);
  const pixels = Uint8Array.from({ length: length * bytes }, () => random.integer(256));
  const labels = Uint8Array.from({ length }, (_, i) => i % 3);
  return { dataset: new MemoryDataset(pixels, [8, 12, 3], labels, ['a', 'b', 'c']), pixels };
}

function tinyVae(seed = 0): AutoencoderKL {
  manualSeed(seed);
  return new AutoencoderKL({
    latentChannels: 2,
    blockOutChannels: [8, 16],
    layersPerBlock: 1,
    normNumGroups: 4,
  }).eval();
}

/** Mean and std of images, straight from the encoder. */
async function direct(vae: AutoencoderKL, pixels: Uint8Array): Promise<Record<'mean' | 'std', Float32Array>> {
  const shape = [pixels.length / bytes, 8, 12, 3] as const;
  const upload = uploadBatch({ images: pixels, shape, labels: undefined, indices: new Uint32Array(), epoch: 0 });
  const posterior = noGrad(() => vae.encode(upload.images));
  return {
    mean: (await posterior.mean.data()) as Float32Array,
    std: (await posterior.std().data()) as Float32Array,
  };
}

/** Every file of a folder. */
function contents(folder: string): Record<string, string> {
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'base64')]));
}

function encoding(t: Test, options: Partial<EncodeLatentsOptions> & { vae: AutoencoderKL }): EncodeLatentsOptions {
  return {
    dataset: images().dataset,
    out: join(t.testdir(), 'latents'),
    batch: 3,
    shardSize: 4,
    dtype: 'f32',
    ...options,
  };
}

t.test('shards hold what the encoder says, of the images and of their mirrors', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    const { pixels } = images();
    for (const [dtype, tolerance] of [
      ['f32', 2e-6],
      ['f16', 1e-3],
      ['bf16', 8e-3],
    ] as const) {
      const options = encoding(t, { vae, dtype, flip: true });
      const seen: number[] = [];
      t.equal(await encodeLatents({ ...options, onProgress: ({ done }) => seen.push(done) }), count);
      t.strictSame(seen, [0, 3, 6, 9, 11]);
      const files = readdirSync(options.out).filter((name) => name.endsWith('.safetensors'));
      t.strictSame(files.sort(), ['shard-00000.safetensors', 'shard-00001.safetensors', 'shard-00002.safetensors']);
      const { tensors } = await loadSafetensors(join(options.out, files[1]));
      t.strictSame([tensors.mean.dtype, tensors.mean.shape], [dtype, [4, 2, 4, 6]]);
      const some = pixels.slice(4 * bytes, 8 * bytes);
      const plain = await direct(vae, some);
      mirror(some, 12, 3);
      const mirrored = await direct(vae, some);
      for (const name of ['mean', 'std'] as const) {
        assertClose(t, await tensors[name].data(), plain[name], tolerance, `${dtype} ${name}`);
        assertClose(
          t,
          await tensors[`${name}_mirrored`].data(),
          mirrored[name],
          tolerance,
          `${dtype} ${name}, mirrored`,
        );
      }
      t.strictSame(await tensors.labels.data(), BigInt64Array.of(1n, 2n, 0n, 1n));
      rmSync(options.out, { recursive: true });
    }
  }),
);

t.test('stopped and run again, the latents are those of one run', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    const options = encoding(t, { vae });
    const controller = new AbortController();
    const stopAt = (images: number) => ({
      signal: controller.signal,
      onProgress: ({ done }: { done: number }) => done >= images && controller.abort(),
    });
    t.equal(await encodeLatents({ ...options, ...stopAt(6) }), 6);
    await assertFails(
      t,
      () => openLatents(options.out),
      'DataError',
      /latents of 6 of 11 images; run diffit data encode/,
    );
    t.equal(await encodeLatents({ ...options, signal: controller.signal }), 6, 'an aborted signal encodes nothing');
    t.equal(await encodeLatents(options), count);
    const before = contents(options.out);
    t.equal(await encodeLatents(options), count);
    t.strictSame(contents(options.out), before, 'a third run changes nothing');
    const whole = { ...options, out: `${options.out}-whole` };
    await encodeLatents(whole);
    const read = async (dir: string): Promise<unknown> => {
      const dataset = await openLatents(dir);
      return [await dataset.readBatch(Array.from({ length: count }, (_, i) => i)), dataset.label(10)];
    };
    t.strictSame(await read(options.out), await read(whole.out));
    // As after a crash between a shard and the index: the shard is made again.
    const index = join(whole.out, 'latents.json');
    const json = JSON.parse(readFileSync(index, 'utf8'));
    t.equal(json.shards.length, 3);
    writeFileSync(index, JSON.stringify({ ...json, shards: json.shards.slice(0, 1) }));
    writeFileSync(join(whole.out, 'shard-00001.safetensors'), 'cut');
    await encodeLatents(whole);
    t.strictSame(await read(options.out), await read(whole.out));
  }),
);

t.test('other settings, other images and damaged shards are refused', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    using other = tinyVae(1);
    const options = encoding(t, { vae });
    await encodeLatents(options);
    for (const [change, message] of [
      [{ dtype: 'f16' }, /made with other settings: dtype: "f32" in the folder, "f16" now/],
      [{ flip: true }, /mirrored: false in the folder, true now/],
      [{ vae: other }, /vae: "[0-9a-f]{64}" in the folder/],
      [{ dataset: images(12).dataset }, /images: 11 in the folder, 12 now/],
    ] as [Partial<EncodeLatentsOptions>, RegExp][]) {
      await assertFails(t, () => encodeLatents({ ...options, ...change }), 'DataError', message);
    }
    t.equal(await encodeLatents({ ...options, shardSize: 2, batch: 1 }), count, 'these two may change');
    const grey = new MemoryDataset(new Uint8Array(64), [8, 8, 1]);
    const odd = new MemoryDataset(new Uint8Array(7 * 8 * 3), [7, 8, 3]);
    await assertFails(
      t,
      () => encodeLatents({ ...options, dataset: grey }),
      'OptionError',
      /1 channels, the VAE takes 3/,
    );
    await assertFails(
      t,
      () => encodeLatents({ ...options, dataset: odd }),
      'OptionError',
      /sides 2 divides; these are 8 x 7/,
    );
    await assertFails(t, () => encodeLatents({ ...options, shardSize: 0 }), 'OptionError', /shardSize is 0/);
    rmSync(join(options.out, 'shard-00001.safetensors'));
    await assertFails(t, () => encodeLatents(options), 'DataError', /shard-00001\.safetensors is missing/);
    vae.loadStateDict({ 'quant_conv.bias': tensor([Number.NaN, 0, 0, 0]) }, { strict: false });
    const out = `${options.out}-nan`;
    await assertFails(t, () => encodeLatents({ ...options, out }), 'DataError', /Latents of images 0 to 2 are NaN/);
  }),
);

t.test('folders that are not sound say so, naming the file', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    const options = encoding(t, { vae });
    const { out } = options;
    await assertFails(
      t,
      () => openLatents(t.testdir()),
      'DataError',
      /holds no latents; make them with diffit data encode/,
    );
    await encodeLatents(options);
    await assertFails(t, () => openDataset(out), 'DataError', /holds latents, not images/);
    const shard = join(out, 'shard-00001.safetensors');
    const sound = readFileSync(shard);
    for (const [name, change, error, message] of [
      ['cut', () => writeFileSync(shard, sound.subarray(0, -1)), 'FileFormatError', /shard-00001\.safetensors/],
      ['text', () => writeFileSync(shard, 'no tensors'), 'FileFormatError', /shard-00001\.safetensors/],
      ['missing', () => rmSync(shard), 'DataError', /shard-00001\.safetensors is missing/],
      [
        'another',
        () => copyFileSync(join(out, 'shard-00002.safetensors'), shard),
        'FileFormatError',
        /shard-00001\.safetensors: "mean" is \[3, 2, 4, 6\] of F32, expected \[4, 2, 4, 6\] of f32/,
      ],
      [
        'label',
        () => writeFileSync(shard, withLabel(sound, 7n)),
        'DataError',
        /shard-00001\.safetensors has the label 7/,
      ],
    ] as [string, () => void, string, RegExp][]) {
      change();
      await t.test(name, (t) => assertFails(t, () => openLatents(out), error, message));
      writeFileSync(shard, sound);
    }
    const index = join(out, 'latents.json');
    const text = readFileSync(index, 'utf8');
    for (const bad of [text.slice(0, 20), text.replace('shard-00001', '../shard'), text.replace('f32', 'f64'), '{}']) {
      writeFileSync(index, bad);
      await assertFails(t, () => openLatents(out), 'FileFormatError', /latents\.json is/);
    }
    writeFileSync(index, text);
    const dataset = await openLatents(out);
    await assertFails(t, () => dataset.readBatch([11]), 'OptionError', /Index 11 is outside/);
    writeFileSync(shard, sound.subarray(0, 300));
    await assertFails(t, () => dataset.readBatch([5]), 'FileFormatError', /shard-00001\.safetensors ends after/);
  }),
);

/** A shard whose first label is another. */
function withLabel(shard: Buffer, label: bigint): Buffer {
  const header = Number(shard.readBigUInt64LE());
  const entries = JSON.parse(shard.toString('utf8', 8, 8 + header));
  const changed = Buffer.from(shard);
  changed.writeBigInt64LE(label, 8 + header + entries.labels.data_offsets[0]);
  return changed;
}

t.test('a loader gives batches of latents; the objective draws from them on the device', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    const options = encoding(t, { vae, flip: true });
    await encodeLatents(options);
    const dataset = await openLatents(options.out);
    const loader = new LatentLoader(dataset, { batchSize: 5, seed: 3, flip: 0.5 });
    t.equal(loader.batchesPerEpoch, 2);
    const { pixels } = images();
    const all = { plain: await direct(vae, pixels), mirrored: {} as Awaited<ReturnType<typeof direct>> };
    mirror(pixels, 12, 3);
    all.mirrored = await direct(vae, pixels);
    const kinds = new Set<string>();
    let batches = 0;
    for await (const batch of loader) {
      t.strictSame(batch.shape, [5, 2, 4, 6]);
      const { images: mean, std, labels } = uploadBatch(batch);
      t.strictSame(
        await labels?.data(),
        BigInt64Array.from(batch.indices, (i) => BigInt(i % 3)),
      );
      const found = { mean: await mean.data(), std: await (std as Tensor).data() };
      for (const [i, index] of batch.indices.entries()) {
        const matches = Object.entries(all).filter(([, { mean, std }]) => {
          const close = (a: ArrayLike<number | bigint>, b: Float32Array) =>
            b
              .subarray(48 * index, 48 * (index + 1))
              .every((x, k) => Math.abs(Number(a[48 * i + k]) - 0.18215 * x) < 1e-5);
          return close(found.mean, mean) && close(found.std, std);
        });
        t.equal(matches.length, 1, `image ${index}`);
        for (const [kind] of matches) kinds.add(kind);
      }
      if (++batches === 4) break;
    }
    t.strictSame([...kinds].sort(), ['mirrored', 'plain']);
    t.strictSame(loader.state(), { epoch: 2, cursor: 0 });
    await assertFails(
      t,
      () => new LatentLoader(dataset, { batchSize: 12 }),
      'OptionError',
      /larger than the data set of 11/,
    );

    const [batch] = await first(loader);
    const upload = uploadBatch(batch);
    const key = { seed: 9, stream: 32, firstSample: 5 };
    let given: TensorBatch | undefined;
    const objective = latentObjective((_: unknown, batch: TensorBatch) => {
      given = batch;
      return affine(batch.images, 1, 0);
    });
    const drawn = await objective(undefined, upload, key).data();
    const noise = randn(upload.images.shape, { seed: 9, stream: 47, firstSample: 5 });
    t.strictSame(drawn, await add(upload.images, mul(upload.std as Tensor, noise)).data());
    t.equal(given?.labels, upload.labels);
    const image = { images: upload.images, labels: upload.labels };
    objective(undefined, image, key);
    t.equal(given, image, 'images pass as they are');
  }),
);

t.test('flips need the latents of mirrored images', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = tinyVae();
    const options = encoding(t, { vae });
    await encodeLatents(options);
    const dataset = await openLatents(options.out);
    await assertFails(
      t,
      () => new LatentLoader(dataset, { batchSize: 2, flip: 0.5 }),
      'OptionError',
      /encode with --flip/,
    );
    await assertFails(t, () => dataset.readBatch([0], () => true), 'OptionError', /no latents of mirrored images/);
  }),
);

async function first(loader: LatentLoader) {
  for await (const batch of loader) return [batch];
  throw new Error('no batch');
}
