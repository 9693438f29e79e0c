import t from 'tap';
import { FileFormatError, OptionError } from '../../lib/errors.js';
import { encodeHeader, headerLength, parseHeader, tensorDType } from '../../lib/io/safetensors-format.js';
import { HostRandom } from '../../lib/random.js';

const encode = (text: string) => new TextEncoder().encode(text);
const parse = (text: string, dataBytes: number) => parseHeader(encode(text), dataBytes, 'file.safetensors');
const entry = (dtype: unknown, shape: unknown, offsets: unknown) => ({ dtype, shape, data_offsets: offsets });

t.test('a header gives its entries in the order of their bytes', async (t) => {
  const header = parse(
    JSON.stringify({
      b: entry('F16', [2, 3], [8, 20]),
      __metadata__: { format: 'pt' },
      none: entry('U8', [4, 0], [8, 8]),
      a: entry('I64', [], [0, 8]),
    }).padEnd(200),
    20,
  );
  t.same(header, {
    entries: [
      { name: 'a', dtype: 'I64', shape: [], begin: 0, end: 8 },
      { name: 'none', dtype: 'U8', shape: [4, 0], begin: 8, end: 8 },
      { name: 'b', dtype: 'F16', shape: [2, 3], begin: 8, end: 20 },
    ],
    metadata: { format: 'pt' },
    dataStart: 208,
  });
  t.same(parse('{}', 0).entries, [], 'a file may hold no tensors');
  t.equal(tensorDType(header.entries[2], 'f'), 'f16');
});

t.test('hostile headers are errors that name the tensor', async (t) => {
  const one = (value: unknown) => JSON.stringify({ 'x.weight': value });
  const big = Number.MAX_SAFE_INTEGER;
  const cases: [what: string, json: string, dataBytes: number, message: RegExp][] = [
    ['no object', '[]', 0, /does not start with "\{"/],
    ['a byte order mark', '\ufeff{}', 0, /does not start with "\{"/],
    ['empty', '', 0, /does not start with "\{"/],
    ['cut off', '{"x":{"dtype":"F32"', 0, /not valid JSON/],
    ['text after the object', '{} {}', 0, /not valid JSON/],
    ['a NaN', '{"x":NaN}', 0, /not valid JSON/],
    ['deep nesting', `{"x":${'['.repeat(100_000)}`, 0, /nested more than 8 deep/],
    ['a key twice', '{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0078":1}', 4, /the key "x" twice/],
    ['a field twice', '{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, /"dtype" twice/],
    ['metadata twice', '{"__metadata__":{"a":"1","a":"2"}}', 0, /the key "a" twice/],
    ['metadata of numbers', '{"__metadata__":{"a":1}}', 0, /"a" is of type number/],
    ['metadata as a list', '{"__metadata__":["a"]}', 0, /must be an object of strings/],
    ['an entry that is null', one(null), 0, /tensor "x.weight" must be an object/],
    ['an entry that is a list', one([1]), 0, /tensor "x.weight" must be an object/],
    ['an unknown field', one({ ...entry('F32', [1], [0, 4]), strides: [1] }), 4, /unknown field "strides"/],
    ['no dtype', one({ shape: [1], data_offsets: [0, 4] }), 4, /unknown dtype undefined/],
    ['an unknown dtype', one(entry('F12', [1], [0, 4])), 4, /unknown dtype "F12"; expected one of BOOL/],
    ['a dtype of Object', one(entry('constructor', [1], [0, 4])), 4, /unknown dtype "constructor"/],
    ['a negative dimension', one(entry('F32', [-1], [0, 4])), 4, /shape of at most 64 non-negative integers/],
    ['a dimension -0', '{"x":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', 0, /non-negative integers/],
    ['a fraction', one(entry('F32', [1.5], [0, 6])), 6, /non-negative integers/],
    ['a string', one(entry('F32', ['1'], [0, 4])), 4, /non-negative integers/],
    ['a number for a shape', one(entry('F32', 1, [0, 4])), 4, /non-negative integers/],
    ['a very long shape', one(entry('F32', new Array(65).fill(1), [0, 4])), 4, /at most 64/],
    ['dimensions beyond 2^53', one(entry('F32', [1e300], [0, 4])), 4, /non-negative integers/],
    ['a product that overflows', one(entry('F32', [big, big, big], [0, 4])), 4, /but its data_offsets \[0, 4\] hold 4/],
    ['2^62 items of 4 bytes', one(entry('F32', [2 ** 31, 2 ** 31], [0, 0])), 0, /hold 0/],
    ['too few bytes', one(entry('F32', [2, 3], [0, 20])), 20, /F32 \[2, 3\] needs 24 bytes.*hold 20/],
    ['too many bytes', one(entry('BF16', [2, 3], [0, 20])), 20, /BF16 \[2, 3\] needs 12 bytes.*hold 20/],
    ['one offset', one(entry('F32', [1], [4])), 4, /needs data_offsets/],
    ['three offsets', one(entry('F32', [1], [0, 4, 8])), 4, /needs data_offsets/],
    ['negative offsets', one(entry('F32', [1], [-4, 0])), 4, /needs data_offsets/],
    ['offsets backwards', one(entry('F32', [1], [4, 0])), 4, /needs data_offsets/],
    ['offsets beyond the file', one(entry('F32', [10], [0, 40])), 20, /take 40 bytes, but 20 follow/],
    ['bytes after the last tensor', one(entry('F32', [1], [0, 4])), 5, /take 4 bytes, but 5 follow/],
    ['a gap at the start', one(entry('F32', [1], [4, 8])), 8, /gap before it; expected it to begin at 0/],
    ['an overlap', JSON.stringify({ a: entry('U8', [4], [0, 4]), b: entry('U8', [4], [2, 6]) }), 6, /"b".*overlaps/],
    [
      'the same bytes twice',
      JSON.stringify({ a: entry('U8', [4], [0, 4]), b: entry('U8', [4], [0, 4]) }),
      4,
      /overlaps/,
    ],
  ];
  for (const [what, json, dataBytes, message] of cases) {
    t.throws(() => parse(json, dataBytes), { name: 'FileFormatError', path: 'file.safetensors', message }, what);
  }
  t.throws(() => parseHeader(Uint8Array.of(0x7b, 0xff, 0x7d), 0, 'f'), { message: /not valid JSON in UTF-8/ });
  const long = 'n'.repeat(100_000);
  t.throws(() => parse(JSON.stringify({ [long]: 1 }), 0), { message: /^.{50,250}$/ }, 'a long name is cut');
  const odd = parse('{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1);
  t.equal(odd.entries[0].name, '__proto__', 'names are only names');
});

t.test('the length of the header is checked against the file', async (t) => {
  const prefix = (length: bigint) => new Uint8Array(new BigUint64Array([length]).buffer);
  t.equal(headerLength(prefix(2n), 10, 'f'), 2);
  for (const [length, size] of [
    [3n, 10],
    [2n ** 64n - 1n, 10],
    [2n ** 63n, 2 ** 40],
    [100_000_001n, 2 ** 40],
  ] as const) {
    t.throws(() => headerLength(prefix(length), size, 'f'), FileFormatError, `${length} in ${size}`);
  }
  t.throws(() => headerLength(new Uint8Array(7), 7, 'f'), /f is 7 bytes/);
});

t.test('mutated headers give a header or a FileFormatError, nothing else', async (t) => {
  const random = new HostRandom(11);
  const base = encodeHeader(
    [
      { name: 'blocks.0.attn.qkv.weight', dtype: 'f32', shape: [12, 4] },
      { name: 'blocks.0.attn.qkv.bias', dtype: 'bf16', shape: [12] },
      { name: 'index', dtype: 'i64', shape: [3, 0] },
      { name: 'image', dtype: 'u8', shape: [5] },
    ],
    { json: '{"a": [1, "b"]}', format: 'pt' },
  ).subarray(8);
  const spice = encode('{}[]":,0123456789-.eE\\uF32nulltrue \u0000\u007f');
  let accepted = 0;
  for (let round = 0; round < 6000; round++) {
    let bytes = base.slice();
    for (let edits = 1 + random.integer(4); edits > 0; edits--) {
      const at = random.integer(bytes.length);
      const kind = random.integer(5);
      if (kind === 0) bytes[at] = random.integer(256);
      else if (kind === 1) bytes[at] = spice[random.integer(spice.length)];
      else if (kind === 2) bytes = bytes.slice(0, Math.max(1, at));
      else {
        const from = random.integer(bytes.length);
        const piece = bytes.slice(from, from + random.integer(40));
        const tail = kind === 3 ? bytes.slice(at) : bytes.slice(at + random.integer(20));
        bytes = Uint8Array.from([...bytes.slice(0, at), ...piece, ...tail]);
      }
    }
    try {
      const { entries } = parseHeader(bytes, 221, 'mutated');
      accepted++;
      if (entries.reduce((sum, { begin, end }) => sum + end - begin, 0) !== 221) t.fail('ranges do not fill the file');
    } catch (error) {
      if (!(error instanceof FileFormatError)) t.fail(`${String(error)} on ${new TextDecoder().decode(bytes)}`);
    }
  }
  t.ok(accepted > 0 && accepted < 3000, `${accepted} of 6000 were still headers`);
});

t.test('encoding follows the format', async (t) => {
  const bytes = encodeHeader([{ name: 'a"', dtype: 'f16', shape: [2] }], { z: '1', b: '2' });
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  t.equal(length % 8, 0, 'aligned');
  t.equal(bytes.length, 8 + length);
  const text = new TextDecoder().decode(bytes.subarray(8));
  t.equal(text.trimEnd(), '{"__metadata__":{"b":"2","z":"1"},"a\\"":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}');
  t.match(text, / *$/, 'padded with spaces');
  t.throws(() => encodeHeader([{ name: '__metadata__', dtype: 'f32', shape: [] }], {}), OptionError);
  t.throws(() => encodeHeader([], { steps: 5 as unknown as string }), /"steps" is of type number/);
});
