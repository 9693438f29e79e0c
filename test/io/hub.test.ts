/** Files of the hub against a local server that speaks its paths: cache, resume, checksums, refusals, no connection. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { hubFile, parseHubAddress } from '../../lib/io/hub.js';
import { commit, sha256Of, startHub } from './hub-server.js';

const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7919) >> 3);
const sha256 = sha256Of(content);
const files = { 'weights/model.safetensors': content };
const address = 'hf://owner/model/weights/model.safetensors';

const blobs = (cacheDir: string): string[] => readdirSync(join(cacheDir, 'models--owner--model', 'blobs'));

t.test('addresses', async (t) => {
  t.strictSame(parseHubAddress('hf://nvidia/DiffiT/a/b.safetensors'), {
    repo: 'nvidia/DiffiT',
    revision: 'main',
    path: 'a/b.safetensors',
  });
  t.equal(parseHubAddress('hf://a/b@v1.0/c').revision, 'v1.0');
  for (const bad of ['hf://', 'hf://a', 'hf://a/b', 'hf://a/b/', 'hf://a/b/../c', 'hf://a/b//c', 'hf:/a/b/c']) {
    t.throws(() => parseHubAddress(bad), { name: 'OptionError', message: /no hub address; expected hf:\/\// }, bad);
  }
});

t.test('a file comes once, lies in the hub cache layout, and serves without a connection', async (t) => {
  const hub = await startHub(t, files);
  const options = { endpoint: hub.endpoint, cacheDir: join(t.testdir(), 'cache') };
  const seen: number[] = [];
  const path = await hubFile(address, {
    ...options,
    onProgress: ({ path, loadedBytes, totalBytes }) => {
      t.equal(path, address);
      t.equal(totalBytes, content.length);
      seen.push(loadedBytes);
    },
  });
  t.equal(path, join(options.cacheDir, 'models--owner--model', 'snapshots', commit, 'weights', 'model.safetensors'));
  t.ok(readFileSync(path).equals(content), 'the content is right');
  t.equal(seen.at(-1), content.length, 'progress ends at the size');
  t.ok(
    seen.every((bytes, i) => i === 0 || bytes > seen[i - 1]),
    'and only rises',
  );
  t.strictSame(blobs(options.cacheDir), [sha256]);
  t.equal(readFileSync(join(options.cacheDir, 'models--owner--model', 'refs', 'main'), 'utf8'), commit);
  t.equal(await hubFile(address, options), path);
  t.equal(await hubFile(`hf://owner/model@${commit}/weights/model.safetensors`, options), path);
  t.equal(hub.ranges.length, 1, 'one download');
  hub.close();
  t.equal(await hubFile(address, { ...options, endpoint: 'http://127.0.0.1:9' }), path, 'no connection');
});

t.test('a connection that breaks is taken up where it broke', async (t) => {
  const hub = await startHub(t, files);
  const options = { endpoint: hub.endpoint, cacheDir: t.testdir() };
  hub.cuts = [100_000, 50_000];
  t.ok(readFileSync(await hubFile(address, options)).equals(content));
  t.equal(hub.ranges.length, 3);
  const starts = hub.ranges.slice(1).map((range) => Number(/bytes=(\d+)-/.exec(range)?.[1]));
  t.ok(starts[0] > 0 && starts[0] <= 100_000, `second download from byte ${starts[0]}`);
  t.ok(starts[1] > starts[0] && starts[1] <= 150_000, `third from byte ${starts[1]}`);
});

t.test('an aborted download goes on the next time; until then there is no file of that name', async (t) => {
  const hub = await startHub(t, files);
  const options = { endpoint: hub.endpoint, cacheDir: t.testdir() };
  const stop = new AbortController();
  hub.cuts = [120_000];
  const reason = new Error('stop');
  await t.rejects(hubFile(address, { ...options, signal: stop.signal, onProgress: () => stop.abort(reason) }), reason);
  t.strictSame(blobs(options.cacheDir), [`${sha256}.incomplete`]);
  t.notOk(existsSync(join(options.cacheDir, 'models--owner--model', 'snapshots')));
  t.ok(readFileSync(await hubFile(address, options)).equals(content));
  t.match(hub.ranges.at(-1), /bytes=[1-9]\d*-/, 'the rest alone was fetched');
});

t.test('damaged content is thrown away and fetched anew', async (t) => {
  const hub = await startHub(t, files);
  const options = { endpoint: hub.endpoint, cacheDir: t.testdir() };
  const folder = join(options.cacheDir, 'models--owner--model', 'blobs');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${sha256}.incomplete`), Buffer.alloc(1000, 1)); // not how the file begins
  await t.rejects(hubFile(address, options), { name: 'FileFormatError', message: /arrived damaged/ });
  t.strictSame(blobs(options.cacheDir), [], 'nothing is kept');
  t.ok(readFileSync(await hubFile(address, options)).equals(content), 'the next call gets it whole');
  const other = { ...options, cacheDir: join(options.cacheDir, 'other') };
  const blob = join(other.cacheDir, 'models--owner--model', 'blobs', `${sha256}.incomplete`);
  mkdirSync(join(blob, '..'), { recursive: true });
  writeFileSync(blob, Buffer.alloc(content.length + 1));
  t.ok(readFileSync(await hubFile(address, other)).equals(content), 'a partial file that is too long is not used');
});

t.test('refusals name the reason', async (t) => {
  const hub = await startHub(t, files);
  const options = { endpoint: hub.endpoint, cacheDir: t.testdir() };
  const fails = (what: string, message: RegExp, more = {}) =>
    t.rejects(hubFile(what, { ...options, ...more }), { name: 'FileError', message });
  await fails('hf://owner/model/other.safetensors', /owner\/model has no file other.safetensors/);
  await fails('hf://owner/nothing/x', /no such repository or revision/);
  await fails(address, /no connection to the hub/, { endpoint: 'http://127.0.0.1:9' });
  hub.refuse = 401;
  await fails(address, /token with access/);
  hub.refuse = 429;
  await fails(address, /answered 429/);
  hub.refuse = undefined;
  const file = join(t.testdir({ occupied: '' }), 'occupied');
  await fails(address, /cannot be written/, { cacheDir: file });
});
