/** Archives that grow: read again by yauzl, with more entries and further ones than 16 and 32 bits count. */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { ZipArchive } from '../../lib/io/zip.js';
import { ZipStore } from '../../lib/io/zip-store.js';

t.test('more than 65,535 entries', async (t) => {
  const path = join(t.testdir({}), 'many.zip');
  const handle = await open(path, 'w+');
  const store = new ZipStore(handle, path);
  const count = 66_000;
  for (let i = 0; i < count; i++) await store.add(`${i}`, Buffer.from(`${i % 7}`));
  const again = new ZipStore(handle, path);
  await again.restore(store.length);
  t.equal(again.count, count);
  await again.finish();
  await handle.close();
  const archive = await ZipArchive.open(path);
  t.equal(archive.names.length, count);
  t.same(Buffer.from(await archive.read('65999', 9)).toString(), `${65_999 % 7}`);
  archive.close();
});

t.test('an entry beyond 4 GiB', async (t) => {
  const path = join(t.testdir({}), 'far.zip');
  const handle = await open(path, 'w+');
  const store = new ZipStore(handle, path);
  await store.add('near', Buffer.from('first'));
  store.length = 5 * 2 ** 30; // a hole: nothing is written there
  await store.add('far', Buffer.from('second'));
  await store.finish();
  await handle.close();
  const archive = await ZipArchive.open(path);
  t.same(archive.names, ['near', 'far']);
  for (const [name, content] of [
    ['near', 'first'],
    ['far', 'second'],
  ])
    t.equal(Buffer.from(await archive.read(name, 99)).toString(), content);
  archive.close();
});
