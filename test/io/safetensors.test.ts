import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { memory } from '../../lib/device.js';
import { loadSafetensors, readSafetensorsHeader, saveSafetensors } from '../../lib/io/safetensors.js';
import { Tensor } from '../../lib/tensor.js';
import { settledMemory } from '../helpers.js';
import { fixture, values } from './fixtures.js';

const device = 'cpu';
const numbers = async (tensor: Tensor) => [...(await tensor.data())].map(Number);
const make = (data: Float32Array | BigInt64Array | Uint8Array, shape: number[]) => {
  const dtype = data instanceof Float32Array ? 'f32' : data instanceof Uint8Array ? 'u8' : 'i64';
  return Tensor.fromBytes(new Uint8Array(data.buffer), { shape, dtype, device });
};
/** A file of the given header text and data. */
const file = (header: string, data = new Uint8Array(0)) => {
  const json = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
};

t.test('a file written by the safetensors library', async (t) => {
  const progress: [string, number, number][] = [];
  const { tensors, metadata } = await loadSafetensors(fixture('all.safetensors'), {
    device,
    onProgress: ({ name, loadedBytes, totalBytes }) => progress.push([name, loadedBytes, totalBytes]),
  });
  t.same(metadata, { format: 'pt', json: '{"nested": ["\\u00fc", 1]}' });
  t.same(
    Object.fromEntries(Object.entries(tensors).map(([name, { dtype, shape }]) => [name, `${dtype} ${shape.join()}`])),
    {
      f32: 'f32 2,3',
      f16: 'f16 9',
      bf16: 'bf16 4',
      f64: 'f32 3',
      i64: 'i64 2,2',
      i32: 'i32 3',
      u8: 'u8 2,3,4,3',
      scalar: 'f32 ',
      empty: 'f32 0,4',
      'blocks.0.attn.qkv.weight': 'f32 3,4',
      'naïve "name"\n': 'f32 1',
    },
  );
  t.same(await numbers(tensors.f32), values.floats.map(Math.fround));
  t.same(await numbers(tensors.f16), values.halves);
  t.same(await numbers(tensors.bf16), values.bfloats);
  t.same(await numbers(tensors.f64), [0.1, 1 / 3, -2].map(Math.fround));
  t.same([...(await tensors.i64.data())], [-(2n ** 62n), -1n, 0n, 2n ** 53n + 1n]);
  t.same(await numbers(tensors.i32), [-(2 ** 31), 7, 2 ** 31 - 1]);
  t.same(
    await numbers(tensors.u8),
    Array.from({ length: 72 }, (_, i) => i % 251),
  );
  t.same(await numbers(tensors.scalar), [0.5]);
  t.same(await numbers(tensors.empty), []);
  t.equal(progress.length, 11);
  t.same(progress.at(-1)?.slice(1), [progress.at(-1)?.[2], progress.at(-1)?.[2]], 'ends at the total');
});

t.test('dtype, filter and signal', async (t) => {
  const path = fixture('all.safetensors');
  const { tensors } = await loadSafetensors(path, {
    device,
    dtype: 'bf16',
    filter: (name) => /^(f32|i64|bf16)$/.test(name),
  });
  t.same(Object.fromEntries(Object.entries(tensors).map(([name, { dtype }]) => [name, dtype])), {
    f32: 'bf16',
    bf16: 'bf16',
    i64: 'i64',
  });
  const abort = new AbortController();
  const before = (await settledMemory(device)).liveBuffers;
  await t.rejects(
    loadSafetensors(path, { device, signal: abort.signal, onProgress: () => abort.abort() }),
    { name: 'AbortError' },
    'stops after the first tensor',
  );
  t.equal(memory(device).liveBuffers, before, 'and gives it back');
});

t.test('the golden files of the original implementations have sound headers', async (t) => {
  const folder = fileURLToPath(new URL('../fixtures/goldens/', import.meta.url));
  const names = readdirSync(folder).filter((name) => name.endsWith('.safetensors'));
  t.ok(names.length > 0);
  for (const name of names) t.ok((await readSafetensorsHeader(join(folder, name))).entries.length > 0, name);
});

t.test('unsupported dtypes are an error only when they are asked for', async (t) => {
  const path = fixture('bool.safetensors');
  await t.rejects(loadSafetensors(path, { device }), {
    name: 'FileFormatError',
    code: 'DIFFIT_FILE_FORMAT',
    message: /bool\.safetensors: tensor "mask" has dtype BOOL, which has no tensor here; expected one of F32/,
  });
  const { tensors } = await loadSafetensors(path, { device, filter: (name) => name === 'x' });
  t.same(await numbers(tensors.x), [1, 2]);
});

t.test('what is saved is read back, byte for byte where it should be', async (t) => {
  const path = join(t.testdir(), 'saved.safetensors');
  const state = {
    z: make(Float32Array.of(1, 2.5, -3), [3]),
    a: make(Float32Array.of(0.5), []),
    'label.ids': make(BigInt64Array.of(5n, -1n), [2]),
    pixels: make(Uint8Array.of(1, 2, 3), [1, 3]),
    none: make(new Float32Array(0), [0, 7]),
  };
  await saveSafetensors(path, state, { step: '12', config: '{}' });
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  t.same(JSON.parse(bytes.toString('utf8', 8, 8 + length)), {
    __metadata__: { config: '{}', step: '12' },
    'label.ids': { dtype: 'I64', shape: [2], data_offsets: [0, 16] },
    a: { dtype: 'F32', shape: [], data_offsets: [16, 20] },
    none: { dtype: 'F32', shape: [0, 7], data_offsets: [20, 20] },
    z: { dtype: 'F32', shape: [3], data_offsets: [20, 32] },
    pixels: { dtype: 'U8', shape: [1, 3], data_offsets: [32, 35] },
  });
  t.equal((8 + length) % 8, 0, 'the data are aligned');
  t.equal(bytes.length, 8 + length + 35);
  t.same(
    [0, 4, 8].map((at) => bytes.readFloatLE(8 + length + 20 + at)),
    [1, 2.5, -3],
  );

  const { tensors, metadata } = await loadSafetensors(path, { device });
  t.same(metadata, { config: '{}', step: '12' });
  for (const [name, tensor] of Object.entries(state)) {
    t.same(tensors[name].shape, tensor.shape, name);
    t.same(await tensors[name].data(), await tensor.data(), name);
  }
  const reversed = Object.fromEntries(Object.entries(state).reverse());
  await saveSafetensors(path, reversed, { config: '{}', step: '12' });
  t.same(readFileSync(path), bytes, 'the order of the keys does not matter');
  t.same(readdirSync(join(path, '..')), ['saved.safetensors'], 'no temporary file stays');

  await saveSafetensors(path, { z: state.z, ids: state['label.ids'] }, {}, { dtype: 'bf16' });
  const half = await readSafetensorsHeader(path);
  t.same(
    half.entries.map(({ name, dtype }) => [name, dtype]),
    [
      ['ids', 'I64'],
      ['z', 'BF16'],
    ],
  );
  t.same(await numbers((await loadSafetensors(path, { device })).tensors.z), [1, 2.5, -3]);
});

t.test('a failed save leaves the old file', async (t) => {
  const folder = t.testdir({ 'model.safetensors': 'old' });
  const path = join(folder, 'model.safetensors');
  const state = { x: make(Float32Array.of(1), [1]) };
  await t.rejects(saveSafetensors(path, state, { step: 3 as unknown as string }), { code: 'DIFFIT_OPTION' });
  const broken = { dtype: 'f32', shape: [1], to: () => broken, bytes: () => Promise.reject(new Error('device fault')) };
  await t.rejects(saveSafetensors(path, { x: broken as unknown as Tensor }), { message: 'device fault' });
  t.equal(readFileSync(path, 'utf8'), 'old');
  t.same(readdirSync(folder), ['model.safetensors']);
  await t.rejects(saveSafetensors(join(folder, 'none', 'x.safetensors'), state), {
    name: 'FileError',
    code: 'DIFFIT_FILE',
    message: /none\/x\.safetensors cannot be written: there is no such file or folder\./,
  });
  await t.rejects(saveSafetensors(folder, state), { name: 'FileError' });
});

t.test('truncated, corrupt and missing files', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'x.safetensors');
  const whole = readFileSync(fixture('all.safetensors'));
  for (let length = 0; length < whole.length; length += length < 40 || length > whole.length - 40 ? 1 : 23) {
    writeFileSync(path, whole.subarray(0, length));
    const outcome = await loadSafetensors(path, { device }).catch((error) => error.name);
    if (outcome !== 'FileFormatError') t.fail(`${length} bytes gave ${outcome}`);
  }
  const lies: [string, Buffer][] = [
    ['a header of 2^60 bytes', Buffer.concat([Buffer.from(new BigUint64Array([2n ** 60n]).buffer), Buffer.from('{}')])],
    ['a tensor of 2^50 bytes', file(`{"x":{"dtype":"U8","shape":[${2 ** 50}],"data_offsets":[0,${2 ** 50}]}}`)],
    ['extra bytes', Buffer.concat([whole, Buffer.of(0)])],
    ['another format', Buffer.from('PK\u0003\u0004 this is a zip file, not safetensors')],
  ];
  for (const [what, bytes] of lies) {
    writeFileSync(path, bytes);
    await t.rejects(loadSafetensors(path, { device }), { name: 'FileFormatError', path }, what);
    await t.rejects(readSafetensorsHeader(path), { name: 'FileFormatError', path }, what);
  }
  await t.rejects(loadSafetensors(join(folder, 'none')), { name: 'FileError', message: /there is no such file/ });
  await t.rejects(loadSafetensors(folder), { name: 'FileError' });
});
