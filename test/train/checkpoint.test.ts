/** Checkpoint files that are not what they should be, and the housekeeping of a run's folder. */
import { writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import t from 'tap';
import { FileFormatError, StateDictError, TrainError } from '../../lib/errors.js';
import { saveSafetensors } from '../../lib/io/index.js';
import { tensor } from '../../lib/tensor.js';
import {
  checkpointPath,
  differences,
  listCheckpoints,
  pruneCheckpoints,
  readCheckpointState,
  restoreCheckpoint,
  saveCheckpoint,
} from '../../lib/train/checkpoint.js';
import { temporaryFolder, tinyModel, tinyTrainer } from './fixtures.js';

t.test('a checkpoint of other settings lists every one that differs', async (t) => {
  const path = join(temporaryFolder(t), 'c.safetensors');
  await saveCheckpoint(path, tinyTrainer(), { training: { lr: 0.001, batch: 4 }, data: { images: 10 } });
  await t.rejects(
    restoreCheckpoint(path, tinyTrainer({ seed: 6 }), {
      training: { lr: 0.002, batch: 4, flip: true },
      data: { images: 10 },
    }),
    new TrainError(
      `${path} belongs to another run: seed: 5 in the checkpoint, 6 now; ` +
        'training.flip: absent in the checkpoint, true now; training.lr: 0.001 in the checkpoint, 0.002 now.',
    ),
  );
});

t.test('a checkpoint of another model', async (t) => {
  const path = join(temporaryFolder(t), 'c.safetensors');
  await saveCheckpoint(path, tinyTrainer(), {});
  const other = tinyTrainer({ model: tinyModel(0, { baseChannels: 16 }) });
  await t.rejects(restoreCheckpoint(path, other, {}), StateDictError);
});

t.test('files that are no checkpoint', async (t) => {
  const folder = temporaryFolder(t);
  const write = async (name: string, metadata: Record<string, string>): Promise<string> => {
    const path = join(folder, name);
    await saveSafetensors(path, { a: tensor([1]) }, metadata);
    return path;
  };
  const format = 'diffit-checkpoint';
  const run = JSON.stringify({ step: -1, images: 0, seed: 0, loader: {}, optimizerSteps: {}, config: {} });
  for (const [name, metadata, message] of [
    ['other', {}, /is not a training checkpoint of diffit/],
    ['newer', { format, formatVersion: '9' }, /format version 9; this diffit reads version 1/],
    ['unreadable', { format, formatVersion: '1', run: '{' }, /no readable run state/],
    ['damaged', { format, formatVersion: '1', run }, /damaged run state: step/],
  ] as const) {
    const path = await write(name, metadata);
    await t.rejects(readCheckpointState(path), { name: 'FileFormatError', path, message }, name);
  }
  const garbage = join(folder, 'garbage');
  writeFileSync(garbage, 'not safetensors at all');
  await t.rejects(readCheckpointState(garbage), FileFormatError);
});

t.test('listing and pruning go by step', async (t) => {
  const folder = temporaryFolder(t);
  t.same(await listCheckpoints(join(folder, 'nowhere')), []);
  for (const step of [900, 10_000_000, 1000]) writeFileSync(checkpointPath(folder, step), '');
  writeFileSync(join(folder, 'checkpoint-x.safetensors'), '');
  writeFileSync(join(folder, 'model.safetensors'), '');
  const names = async () => (await listCheckpoints(folder)).map((path) => basename(path));
  t.same(await names(), [
    'checkpoint-0000900.safetensors',
    'checkpoint-0001000.safetensors',
    'checkpoint-10000000.safetensors',
  ]);
  await pruneCheckpoints(folder, 2);
  t.same(await names(), ['checkpoint-0001000.safetensors', 'checkpoint-10000000.safetensors']);
  await pruneCheckpoints(folder, 5);
  t.equal((await names()).length, 2);
});

t.test('differences of JSON values', async (t) => {
  t.same(differences({ a: [1, 2], b: { c: 1 } }, { a: [1, 2], b: { c: 1 } }), []);
  t.same(differences({ a: [1, 2] }, { a: [1, 3] }), ['a: [1,2] in the checkpoint, [1,3] now']);
  t.same(differences({ a: { b: 1 } }, {}), ['a: {"b":1} in the checkpoint, absent now']);
});
