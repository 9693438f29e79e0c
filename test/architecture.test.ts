/**
 * Imports run one way. Each room may import from itself and from the rooms above it in the table; `not` and `only`
 * narrow that. The same holds for #includes under native/, where `only` lists all a room may see.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

interface Room {
  name: string;
  /** Folders (ending in /) and files. */
  holds: string[];
  /** Rooms above that this one must not import. */
  not?: string[];
  /** The only rooms above that this one may import. */
  only?: string[];
}

const libRooms: Room[] = [
  { name: 'native', holds: ['lib/native.ts', 'lib/package.ts'] },
  {
    name: 'tensor',
    holds: [
      'errors',
      'options',
      'option-problems',
      'dtype',
      'shape',
      'scope',
      'device',
      'graph',
      'tape',
      'tensor',
      'random',
    ]
      .map((file) => `lib/${file}.ts`)
      .concat('lib/ops/'),
  },
  { name: 'autograd', holds: ['lib/autograd.ts', 'lib/grads.ts'] },
  { name: 'nn', holds: ['lib/nn/'] },
  { name: 'models', holds: ['lib/models/'] },
  { name: 'diffusion', holds: ['lib/diffusion/'], not: ['models'] },
  { name: 'io and data', holds: ['lib/io/', 'lib/data/'], only: ['tensor'] },
  { name: 'optim', holds: ['lib/optim/'] },
  { name: 'train', holds: ['lib/train/'] },
  { name: 'metrics', holds: ['lib/metrics/'] },
  { name: 'bench', holds: ['lib/bench/'] },
  { name: 'face', holds: ['lib/cli/', 'lib/index.ts'] },
];

const nativeRooms: Room[] = [
  { name: 'abi', holds: ['native/abi/'] },
  { name: 'cpu', holds: ['native/cpu/'], only: ['abi'] },
  // Stands in for CUDA's toolkit, so it lies below the kernels and knows nothing of them.
  { name: 'emulator', holds: ['native/emulator/'], only: [] },
  { name: 'cuda', holds: ['native/cuda/'], only: ['abi', 'emulator'] },
  { name: 'binding', holds: ['native/binding/'], only: ['abi'] },
];

/** Things only one place may import: a pattern of the specifier, and who may. */
const reserved: { what: RegExp; by: string }[] = [
  { what: /^node-gyp-build$/, by: 'lib/native.ts' },
  { what: /^(node_api|js_native_api|napi)\.h$/, by: 'native/binding/' },
];

type Files = Record<string, string>;

const importPattern = /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\w*\(\s*)'([^'\n]+)'/g;
const includePattern = /^\s*#\s*include\s*[<"]([^>"\n]+)[>"]/gm;

/** Every breach of the tables, as a sentence. */
function breaches(files: Files, rooms: Room[]): string[] {
  const indexOf = (path: string) =>
    rooms.findIndex(({ holds }) => holds.some((held) => (held.endsWith('/') ? path.startsWith(held) : path === held)));
  const found: string[] = [];
  for (const [path, source] of Object.entries(files)) {
    const from = indexOf(path);
    if (from < 0) {
      found.push(`${path} is in no room`);
      continue;
    }
    const pattern = path.endsWith('.ts') ? importPattern : includePattern;
    for (const [, specifier] of source.matchAll(pattern)) {
      for (const { what, by } of reserved) {
        if (what.test(specifier) && !path.startsWith(by)) found.push(`${path} imports ${specifier}`);
      }
      const target = posix.join(posix.dirname(path), specifier).replace(/\.js$/, '.ts');
      if (path.endsWith('.ts') ? !specifier.startsWith('.') : !(target in files)) continue;
      const to = indexOf(target);
      const { name, not, only } = rooms[from];
      const room = rooms[to]?.name;
      if (room === name) continue;
      if (to < 0) found.push(`${path} imports ${target}, which is in no room`);
      else if (to > from) found.push(`${path} imports ${target} upward, from ${name} into ${room}`);
      else if (not?.includes(room) || (only && !only.includes(room))) {
        found.push(`${path} imports ${target}, but ${name} must not see ${room}`);
      }
    }
  }
  return found;
}

const root = fileURLToPath(new URL('..', import.meta.url));

/** The files under a folder, none where it does not exist. */
function read(folder: string, ending: RegExp): Files {
  if (!existsSync(join(root, folder))) return {};
  const names = readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' });
  const paths = names.map((name) => posix.join(folder, name)).filter((path) => ending.test(path));
  return Object.fromEntries(paths.map((path) => [path, readFileSync(join(root, path), 'utf8')]));
}

t.test('imports of lib/ run one way', async (t) => {
  const files = read('lib', /\.ts$/);
  t.ok(Object.keys(files).length > 20);
  t.same(breaches(files, libRooms), []);
});

t.test('#includes of native/ run one way, and only the binding sees N-API', async (t) => {
  const files = read('native', /\.(h|cc|cu|cuh|def)$/);
  t.ok(Object.keys(files).length > 20);
  t.same(breaches(files, nativeRooms), []);
});

t.test("benchmarks and examples use the public face alone, the CPU's what `diffit bench` is made of too", async (t) => {
  for (const [path, source] of Object.entries({ ...read('bench', /\.ts$/), ...read('examples', /\.ts$/) })) {
    const own = [...source.matchAll(importPattern)].map(([, specifier]) => specifier).filter((s) => s.includes('lib/'));
    t.same(
      own.filter(
        (specifier) =>
          !specifier.endsWith('lib/index.js') && !(path.startsWith('bench/cpu/') && specifier.includes('lib/bench/')),
      ),
      [],
      path,
    );
  }
});

t.test('the rule can fail', async (t) => {
  const lib = (path: string, source: string) => breaches({ [path]: source }, libRooms);
  t.match(lib('lib/tensor.ts', "import { Linear } from './nn/layers.js';"), [/upward, from tensor into nn/]);
  t.match(lib('lib/nn/a.ts', "export * from '../models/index.js';"), [/upward/]);
  t.match(lib('lib/nn/a.ts', "import type {\n  A,\n} from '../index.js';"), [/upward/]);
  t.match(lib('lib/optim/a.ts', "const a = await import('../train/loop.js');"), [/upward/]);
  t.match(lib('lib/grads.ts', "import '../lib/cli/main.js';"), [/upward/]);
  t.match(lib('lib/diffusion/edm.ts', "import { create } from '../models/index.js';"), [
    /diffusion must not see models/,
  ]);
  t.match(lib('lib/data/a.ts', "import { backward } from '../autograd.js';"), [/must not see autograd/]);
  t.match(lib('lib/io/a.ts', "import load from 'node-gyp-build';"), [/imports node-gyp-build/]);
  t.match(lib('lib/surprise.ts', ''), [/in no room/]);
  t.same(lib('lib/train/a.ts', "import { Adam } from '../optim/index.js';\nimport { z } from 'zod';"), []);
  const native = (path: string, source: string) =>
    breaches(
      { [path]: source, 'native/cpu/simd.h': '', 'native/binding/js.h': '', 'native/abi/diffit.h': '' },
      nativeRooms,
    );
  t.match(native('native/abi/a.h', '#include "../cpu/simd.h"'), [/upward, from abi into cpu/]);
  t.match(native('native/binding/a.cc', '#include "../cpu/simd.h"'), [/binding must not see cpu/]);
  t.match(native('native/cuda/a.cu', '#include "../binding/js.h"'), [/upward/]);
  t.match(native('native/cpu/a.cc', '#include <node_api.h>'), [/imports node_api.h/]);
  t.same(native('native/binding/a.cc', '#include <node_api.h>\n#include "../abi/diffit.h"'), []);
});
