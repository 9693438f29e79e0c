import t from 'tap';
import { type Dataset, MemoryDataset } from '../../lib/data/dataset.js';
import { type Batch, DataLoader, type DataLoaderOptions as LoaderOptions } from '../../lib/data/loader.js';

/** Images of 1 x 2 x 3 whose bytes start with their index. */
function numbered(length: number): MemoryDataset {
  const images = Uint8Array.from({ length: length * 6 }, (_, i) => (i % 6 === 0 ? i / 6 : 100 + (i % 6)));
  return new MemoryDataset(
    images,
    [1, 2, 3],
    Uint8Array.from({ length }, (_, i) => i % 3),
    ['a', 'b', 'c'],
  );
}

/** The same set read image by image, slowly and out of order. */
function slow(set: MemoryDataset, onRead: (reading: number) => void = () => {}): Dataset {
  let reading = 0;
  return {
    length: set.length,
    imageShape: set.imageShape,
    numClasses: set.numClasses,
    async get(index) {
      onRead(++reading);
      await new Promise((resolve) => setTimeout(resolve, (index * 7) % 5));
      reading--;
      return set.get(index);
    },
  };
}

async function take(loader: DataLoader, count: number): Promise<Batch[]> {
  const batches: Batch[] = [];
  if (count > 0) {
    for await (const batch of loader) {
      batches.push(batch);
      if (batches.length === count) break;
    }
  }
  return batches;
}

t.test('an epoch holds every image once, in an order of its own', async (t) => {
  const loader = new DataLoader(numbered(20), { batchSize: 4, seed: 1, epochs: 3 });
  t.equal(loader.batchesPerEpoch, 5);
  const batches = await take(loader, 1000);
  t.equal(batches.length, 15);
  const orders = [0, 1, 2].map((epoch) =>
    batches.filter((batch) => batch.epoch === epoch).flatMap(({ indices }) => [...indices]),
  );
  for (const order of orders) {
    t.same(
      [...order].sort((a, b) => a - b),
      Array.from({ length: 20 }, (_, i) => i),
    );
  }
  t.equal(new Set(orders.map(String)).size, 3);
  for (const { images, labels, indices, shape } of batches) {
    t.same(shape, [4, 1, 2, 3]);
    t.same(
      [...indices],
      [0, 6, 12, 18].map((at) => images[at]),
    );
    t.same(
      [...(labels ?? [])],
      Array.from(indices, (index) => BigInt(index % 3)),
    );
  }
  const other = new DataLoader(numbered(20), { batchSize: 20, seed: 2 });
  t.notSame([...(await take(other, 1))[0].indices], orders[0], 'another seed, another order');
  t.same(
    [...(await take(new DataLoader(numbered(20), { batchSize: 20, seed: 1 }), 1))[0].indices],
    orders[0],
    'batches do not matter',
  );
});

t.test('dropLast, shuffle and the end', async (t) => {
  const sizes = async (options: Partial<LoaderOptions>) =>
    (await take(new DataLoader(numbered(10), { batchSize: 4, epochs: 2, ...options }), 100)).map(
      ({ indices }) => indices.length,
    );
  t.same(await sizes({}), [4, 4, 4, 4]);
  t.same(await sizes({ dropLast: false }), [4, 4, 2, 4, 4, 2]);
  t.same(await sizes({ epochs: 0 }), []);
  t.same(await sizes({ dropLast: false, batchSize: 50, epochs: 1 }), [10]);
  const inOrder = await take(new DataLoader(numbered(10), { batchSize: 5, shuffle: false, epochs: 1 }), 9);
  t.same(
    inOrder.flatMap(({ indices }) => [...indices]),
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  const unlabelled = new MemoryDataset(new Uint8Array(12), [1, 2, 3]);
  t.equal((await take(new DataLoader(unlabelled, { batchSize: 2 }), 1))[0].labels, undefined);
});

t.test('a restored loader goes on with the same batches', async (t) => {
  const options = { batchSize: 3, seed: 5, flip: 0.5, dropLast: false };
  const whole = await take(new DataLoader(numbered(10), options), 12);
  for (const source of [numbered(10), slow(numbered(10))]) {
    for (let stop = 0; stop <= 9; stop++) {
      const first = new DataLoader(source, options);
      const before = await take(first, stop);
      const state = JSON.parse(JSON.stringify(first.state()));
      const second = new DataLoader(source, options);
      second.restore(state);
      const after = await take(second, 3);
      t.same([...before, ...after], whole.slice(0, stop + 3), `stopped after ${stop}`);
      t.same(await take(first, 1), whole.slice(stop, stop + 1), 'leaving the loop and coming back does too');
    }
  }
  const loader = new DataLoader(numbered(10), { ...options, epochs: 2 });
  t.same(loader.state(), { epoch: 0, cursor: 0 });
  await take(loader, 4);
  t.same(loader.state(), { epoch: 1, cursor: 0 }, 'the end of an epoch is the start of the next');

  const seen: number[] = [];
  for await (const { indices } of loader) {
    seen.push(indices[0]);
    if (seen.length === 2) loader.restore({ epoch: 1, cursor: 0 });
    if (seen.length === 5) break;
  }
  t.same(seen.slice(2, 4), seen.slice(0, 2), 'restoring inside the loop goes back');

  for (const state of [
    { epoch: -1, cursor: 0 },
    { epoch: 0, cursor: 11 },
    { epoch: 0.5, cursor: 0 },
  ]) {
    t.throws(() => loader.restore(state), { code: 'DIFFIT_OPTION' });
  }
});

t.test('reads ahead, but no more than asked', async (t) => {
  let most = 0;
  let reads = 0;
  const source = slow(numbered(100), (reading) => {
    reads++;
    most = Math.max(most, reading);
  });
  const loader = new DataLoader(source, { batchSize: 5, prefetch: 2, concurrency: 3 });
  for await (const _ of loader) {
    await new Promise((resolve) => setTimeout(resolve, 60));
    break;
  }
  t.equal(most, 3, 'three images at a time');
  t.equal(reads, 15, 'the batch in use and two ahead');
  reads = 0;
  await take(new DataLoader(source, { batchSize: 5, prefetch: 0 }), 2);
  t.equal(reads, 10, 'none ahead');
});

t.test('flips mirror rows, by image and epoch', async (t) => {
  const set = new MemoryDataset(
    Uint8Array.from({ length: 2 * 3 * 3 * 8 }, (_, i) => i),
    [2, 3, 3],
  );
  const read = async (flip: number, batchSize: number) =>
    (await take(new DataLoader(set, { batchSize, seed: 9, flip, epochs: 50, shuffle: false }), 1e6)).flatMap(
      ({ images }) => Array.from({ length: batchSize }, (_, i) => [...images.subarray(i * 18, (i + 1) * 18)]),
    );
  const plain = await read(0, 8);
  const mirrored = await read(1, 8);
  t.same(
    plain[0],
    Array.from({ length: 18 }, (_, i) => i),
  );
  t.same(mirrored[0], [6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11]);
  const some = await read(0.25, 8);
  const flipped = some.map((image, i) => String(image) === String(mirrored[i]));
  t.ok(
    some.every((image, i) => flipped[i] || String(image) === String(plain[i])),
    'each is plain or mirrored',
  );
  const share = flipped.filter(Boolean).length / 400;
  t.ok(Math.abs(share - 0.25) < 0.1, `${share} of 400 flipped`);
  t.same(await read(0.25, 2), some, 'the batch size does not matter');
});

t.test('failures and cancelling', async (t) => {
  const set = numbered(12);
  const failing: Dataset = {
    length: 12,
    imageShape: set.imageShape,
    numClasses: 3,
    get: (index) => (index === 5 ? Promise.reject(new Error('image 5')) : set.get(index)),
  };
  const loader = new DataLoader(failing, { batchSize: 2, shuffle: false, prefetch: 4 });
  const seen: number[] = [];
  await t.rejects(
    (async () => {
      for await (const { indices } of loader) seen.push(...indices);
    })(),
    { message: 'image 5' },
  );
  t.same(seen, [0, 1, 2, 3], 'the batches before arrive');
  t.same(loader.state(), { epoch: 0, cursor: 4 });
  await take(loader, 0);

  const short: Dataset = { ...failing, get: async () => ({ image: new Uint8Array(5), label: 0 }) };
  await t.rejects(take(new DataLoader(short, { batchSize: 2 }), 1), {
    name: 'DataError',
    message: /has 5 bytes; 1 x 2 x 3 needs 6/,
  });

  const abort = new AbortController();
  const never: Dataset = { ...failing, get: () => new Promise(() => {}) };
  const waiting = take(new DataLoader(never, { batchSize: 2, signal: abort.signal }), 1);
  setTimeout(() => abort.abort(new Error('enough')), 5);
  await t.rejects(waiting, { message: 'enough' });
  await t.rejects(take(new DataLoader(set, { batchSize: 2, signal: abort.signal }), 1), { message: 'enough' });
});

t.test('options', async (t) => {
  const set = numbered(4);
  for (const options of [
    { batchSize: 0 },
    { batchSize: 1.5 },
    { batchSize: 2, prefetch: -1 },
    { batchSize: 2, concurrency: 0 },
    { batchSize: 2, epochs: -1 },
    { batchSize: 2, flip: 1.5 },
    { batchSize: 2, flip: Number.NaN },
    { batchSize: 2, seed: 0.5 },
  ]) {
    t.throws(() => new DataLoader(set, options), { code: 'DIFFIT_OPTION' }, JSON.stringify(options));
  }
  t.throws(() => new DataLoader(set, { batchSize: 5 }), {
    message: /batchSize 5 is larger than the data set of 4 images/,
  });
  t.throws(() => new DataLoader({ ...slow(set), length: 0 }, { batchSize: 1 }), { name: 'DataError' });
  t.throws(() => new MemoryDataset(new Uint8Array(7), [1, 2, 3]), { name: 'DataError' });
  t.throws(() => new MemoryDataset(new Uint8Array(0), [1, 2, 3]), { name: 'DataError' });
  t.throws(() => new MemoryDataset(new Uint8Array(6), [1, 2, 3], new Uint8Array(2)), { name: 'DataError' });
  t.throws(() => new MemoryDataset(new Uint8Array(6), [1, 2, 3], Uint8Array.of(2), ['a', 'b']), { name: 'DataError' });
  t.equal(new MemoryDataset(new Uint8Array(12), [1, 2, 3], Uint8Array.of(2, 0)).numClasses, 3);
});
