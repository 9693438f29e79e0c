/**
 * What is fuzzed: everything that reads bytes or words from outside. A target takes bytes and comes to an end; it may throw a DiffitError, and
 * nothing else. `seeds` are sound inputs, which the fuzzer damages.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { run } from '../../../lib/cli/program.js';
import { openCifar10 } from '../../../lib/data/cifar10.js';
import { readIdx } from '../../../lib/data/idx.js';
import { readLatentIndex } from '../../../lib/data/latent-index.js';
import { openDataset } from '../../../lib/data/open.js';
import { FileFormatError } from '../../../lib/errors.js';
import { ByteReader } from '../../../lib/io/byte-reader.js';
import { decodeImage, encodePng } from '../../../lib/io/image.js';
import { hostArray, loadSafetensors, readNpz, saveSafetensors, writeNpz } from '../../../lib/io/index.js';
import { readMatStructs } from '../../../lib/io/mat.js';
import { encodeNpyHeader, readNpyHeader } from '../../../lib/io/npy.js';
import { readPickle } from '../../../lib/io/pickle.js';
import { parseHeader } from '../../../lib/io/safetensors-format.js';
import { readTar } from '../../../lib/io/tar.js';
import { writeZip } from '../../../lib/io/zip.js';
import { scope } from '../../../lib/scope.js';
import { tensor, zeros } from '../../../lib/tensor.js';
import { readCheckpointState } from '../../../lib/train/checkpoint.js';
import { planTraining, readLog, readModelDescription, saveModel } from '../../../lib/train/index.js';
import { readRecord } from '../../../lib/train/record.js';
import { tar } from '../../data/archives.js';
import { tinyModel } from '../../train/fixtures.js';
import { calls } from './calls.js';

export interface Target {
  name: string;
  seeds: Uint8Array[];
  /** Pieces that mean something to the parser. */
  words: string[];
  run(bytes: Uint8Array): unknown;
  /** Share of all executions, by what one costs. */
  weight: number;
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const bytesOf = (path: string): Uint8Array => new Uint8Array(readFileSync(path));
const fixture = (name: string): Uint8Array => bytesOf(join(import.meta.dirname, '../../fixtures/io', name));

/** The targets, with a folder in memory for those that open files; `close` removes it. */
export async function makeTargets(): Promise<{ targets: Target[]; close(): void }> {
  const folder = mkdtempSync(join(process.platform === 'linux' ? '/dev/shm' : tmpdir(), 'diffit-fuzz-'));
  const at = (name: string): string => join(folder, name);
  /** Puts the bytes into a file and lets `use` open it. */
  const file =
    (name: string, use: (path: string) => unknown): ((bytes: Uint8Array) => unknown) =>
    async (bytes) => {
      writeFileSync(at(name), bytes);
      await use(at(name));
    };
  const written = async (name: string, write: (path: string) => Promise<unknown>): Promise<Uint8Array> => {
    await scope(() => write(at(name))); // nothing is left to the garbage collector, whose work calls.ts would see
    return bytesOf(at(name));
  };
  const safetensors = await written('a.safetensors', (path) =>
    saveSafetensors(
      path,
      { w: tensor([1, 2, 3]), b: zeros([2, 0, 3]), h: zeros([2, 3]).to('bf16') },
      { a: 'b' },
      { checksums: true },
    ),
  );
  const tiny = tinyModel();
  const model = await written('m.safetensors', (path) => saveModel(path, tiny));
  tiny.dispose();
  const headerOf = (bytes: Uint8Array): Uint8Array =>
    bytes.slice(8, 8 + Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)));
  const npy = encodeNpyHeader({ dtype: 'f32', shape: [2, 3], dataBytes: 24 });
  const npz = await written('a.npz', (path) =>
    writeNpz(path, { arr_0: hostArray(new Uint8Array(12), [1, 2, 2, 3]), arr_1: hostArray(new BigInt64Array(1)) }),
  );
  const png = await encodePng({ data: new Uint8Array(48), width: 4, height: 4, channels: 3 });
  const zip = await written('a.zip', (path) => {
    const source = (name: string, bytes: Uint8Array) => ({ name, size: bytes.length, chunks: [bytes] });
    const labels = text(JSON.stringify({ labels: [['a/0.png', 1]] }));
    return writeZip(path, [source('a/0.png', png), source('dataset.json', labels)], true);
  });
  const idx = Uint8Array.of(0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8);
  const recipe = {
    preset: 'mnist',
    model: { imgResolution: 8, channelMult: [1, 2] },
    training: { batch: 4, lr: 1e-3, gradClip: 1, flip: true },
    sampler: { kind: 'edm', steps: 18, churn: 0 },
  };
  const run_ = {
    format: 'diffit-run',
    formatVersion: 1,
    status: 'running',
    seed: 0,
    device: 'cpu',
    parameters: 1,
    data: 'x',
  };
  const record = { ...run_, config: {}, process: { pid: 1, host: 'h' }, sessions: [{ started: 'now', after: 0 }] };
  const step = { step: 1, loss: 0.5, lr: 1e-3, images: 4, imagesPerSecond: 10 };
  const state = { step: 1, images: 4, seed: 0, loader: { epoch: 0, cursor: 1 }, optimizerSteps: { w: 1 }, config: {} };
  const checkpoint = await written('c.safetensors', (path) =>
    saveSafetensors(
      path,
      { w: tensor([1]) },
      { format: 'diffit-checkpoint', formatVersion: '1', run: JSON.stringify(state) },
    ),
  );
  const settings = {
    images: 2,
    imageShape: [16, 16, 3],
    latentShape: [4, 2, 2],
    scalingFactor: 0.18,
    numClasses: 0,
    mirrored: false,
    dtype: 'f16',
    vae: 'x',
  };
  const shards = [{ file: 'shard-00000.safetensors', images: 2 }];
  const latents = { format: 'diffit-latents', formatVersion: 1, settings, shards };
  mkdirSync(at('cifar'));
  mkdirSync(at('latents'));
  mkdirSync(at('run'));
  const jsonWords = [
    'null',
    '-1',
    '1e999',
    '-0',
    '[]',
    '{}',
    '""',
    'true',
    '"__proto__"',
    '9007199254740993',
    '1.5',
    ',',
    ':',
  ];
  const zipWords = ['PK\x01\x02', 'PK\x03\x04', 'PK\x05\x06', 'PK\x06\x06', '../', '/', '\\', '\xff\xff\xff\xff'];
  const targets: Target[] = [
    {
      name: 'safetensors header',
      seeds: [headerOf(safetensors), headerOf(model), headerOf(fixture('all.safetensors'))],
      words: [...jsonWords, '"dtype"', '"F32"', '"shape"', '"data_offsets"', '"__metadata__"', '"diffit.crc32"', 'F64'],
      run: (bytes) => parseHeader(bytes, 24, 'x'),
      weight: 100,
    },
    {
      name: 'npy header',
      seeds: [npy, ...['f8.npy', 'version2.npy', 'fortran.npy', 'empty.npy'].map(fixture)],
      words: [
        "'descr'",
        "'<f8'",
        "'|O'",
        "'fortran_order'",
        'True',
        "'shape'",
        '(',
        ')',
        ',',
        '99999999999',
        '{',
        '}',
        '\x93NUMPY',
      ],
      run: (bytes) => readNpyHeader(new ByteReader(once(bytes), 'x'), bytes.length + 24),
      weight: 100,
    },
    {
      name: 'recipe',
      seeds: [text(JSON.stringify(recipe)), text(JSON.stringify({ preset: 'latent-small', kind: 'LatentDiffiT' }))],
      words: [...jsonWords, '"kind"', '"preset"', '"training"', '"ddpm"', '"lrRampImages"'],
      run: (bytes) => {
        planTraining(parsed(bytes) as never);
      },
      weight: 60,
    },
    {
      name: 'safetensors file',
      seeds: [safetensors, fixture('all.safetensors')],
      words: jsonWords,
      run: file('x.safetensors', (path) => scope(async () => void (await loadSafetensors(path)))),
      weight: 6,
    },
    {
      name: 'model file',
      seeds: [model],
      words: [...jsonWords, '\\"config\\"', '\\"kind\\"'],
      run: file('x.safetensors', readModelDescription),
      weight: 4,
    },
    {
      name: 'checkpoint file',
      seeds: [checkpoint],
      words: [...jsonWords, '\\"step\\"', '\\"loader\\"'],
      run: file('x.safetensors', readCheckpointState),
      weight: 6,
    },
    {
      name: 'npz',
      seeds: [npz, fixture('compressed.npz'), fixture('images.npz')],
      words: zipWords,
      run: file('x.npz', readNpz),
      weight: 3,
    },
    {
      name: 'zip of images',
      seeds: [zip],
      words: [...zipWords, 'dataset.json', ...jsonWords],
      run: file('x.zip', dataset),
      weight: 2,
    },
    {
      name: 'image',
      seeds: [png, ...(await otherImages())],
      words: ['IHDR', 'IDAT', 'IEND'],
      run: (bytes) => decodeImage(bytes, 'x'),
      weight: 2,
    },
    {
      name: 'idx',
      seeds: [idx],
      words: ['\0\0\x08\x03', '\xff\xff\xff\xff'],
      run: file('idx3-ubyte', (path) => readIdx(path, 3)),
      weight: 6,
    },
    {
      name: 'idx, gzip',
      seeds: [new Uint8Array(gzipSync(idx)), new Uint8Array(gzipSync(new Uint8Array(1 << 20)))],
      words: ['\x1f\x8b\x08'],
      run: file('idx3-ubyte.gz', (path) => readIdx(path, 3)),
      weight: 2,
    },
    {
      name: 'cifar10',
      seeds: [new Uint8Array(3073), new Uint8Array(2 * 3073)],
      words: [],
      run: file('cifar/data_batch_1.bin', () => openCifar10({ dir: at('cifar') })),
      weight: 3,
    },
    {
      name: 'pickle',
      seeds: [fixture('cifar_protocol2.pickle'), fixture('cifar_protocol4.pickle')],
      words: ['cnumpy\ndtype\n', 'tb', 'R.', '\x80\x02', 'q\x01h\x01', '(lp0\n'],
      run: (bytes) => readPickle(bytes, 'x'),
      weight: 2,
    },
    {
      name: 'tar',
      seeds: [new Uint8Array(tar({ a: text('b'), data_batch_1: text('c') }))],
      words: ['ustar', '0000644\0'],
      run: file('x.tar', async (path) => {
        for await (const { bytes } of readTar(path, () => true, 1 << 20)) bytes.fill(0);
      }),
      weight: 2,
    },
    {
      name: 'mat',
      seeds: [fixture('meta.mat')],
      words: ['synsets', 'WNID', '\x0f\0\0\0', '\x0e\0\0\0'],
      run: (bytes) => readMatStructs(bytes, 'synsets', 'x'),
      weight: 2,
    },
    {
      name: 'log',
      seeds: [text(`${JSON.stringify(step)}\n`.repeat(3))],
      words: [...jsonWords, '\n'],
      run: file('log.jsonl', readLog),
      weight: 6,
    },
    {
      name: 'run record',
      seeds: [text(JSON.stringify(record))],
      words: jsonWords,
      run: file('run/run.json', () => readRecord(at('run'))),
      weight: 6,
    },
    {
      name: 'latents index',
      seeds: [text(JSON.stringify(latents))],
      words: [...jsonWords, '../', '"shards"'],
      run: file('latents/latents.json', () => readLatentIndex(at('latents'))),
      weight: 6,
    },
    {
      name: 'command line',
      seeds: [
        'sample --checkpoint none --labels 0-9',
        'train --preset mnist --data none --steps 5',
        'data none --num 3',
      ].map(text),
      words: [
        '--',
        '-',
        '=',
        ' ',
        '--steps',
        '--json',
        '1e9',
        '-1',
        'NaN',
        '0-9',
        '\0',
        'edm',
        '--class',
        '--seed',
        '0x10',
        ',',
      ],
      run: commandLine,
      weight: 2,
    },
    calls,
  ];
  return { targets, close: () => rmSync(folder, { recursive: true, force: true }) };
}

async function dataset(path: string): Promise<void> {
  const set = await openDataset(path);
  try {
    await set.get(0);
  } finally {
    set.close?.();
  }
}

async function otherImages(): Promise<Uint8Array[]> {
  const { default: sharp } = await import('sharp');
  const image = sharp({ create: { width: 5, height: 3, channels: 3, background: 'red' } });
  return Promise.all(
    [image.clone().jpeg().toBuffer(), image.clone().webp().toBuffer()].map(async (x) => new Uint8Array(await x)),
  );
}

/** A command ends with an exit code of 0 to 2 and, when it failed, an error of ours: one that has a code. */
async function commandLine(bytes: Uint8Array): Promise<void> {
  const argv = new TextDecoder().decode(bytes).split(' ');
  if (!['sample', 'train', 'data'].includes(argv[0])) argv.unshift('sample');
  const said: string[] = [];
  const sink = { write: (line: string) => said.push(line) };
  // Last, so that whatever the words mean nothing is found to work on and nothing is written.
  const safe =
    argv[0] === 'data' ? [] : ['--out', '/dev/null/none', argv[0] === 'sample' ? '--checkpoint' : '--data', 'none'];
  const code = await run([...argv, ...safe, '--json'], { stdout: sink, stderr: sink });
  if (code === 2 || code === 0) return;
  const last = said.join('').trim().split('\n').slice(-1)[0];
  const { error } = JSON.parse(last) as { error?: { code?: string } };
  if (code !== 1 || !error?.code) throw new Error(`exit code ${code}: ${last}`);
}

function parsed(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    throw new FileFormatError('not JSON', { path: '', cause }); // as readRecipe() does
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
