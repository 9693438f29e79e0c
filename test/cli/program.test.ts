/** What the command line says and which exit code it gives, for good and bad usage. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { classList } from '../../lib/cli/arguments.js';
import { run } from '../../lib/cli/program.js';
import { Terminal } from '../../lib/cli/terminal.js';
import { temporaryFolder } from '../train/fixtures.js';

/** Runs one command line in this process. */
async function diffit(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text) },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

t.test('help and version', async (t) => {
  const { code, out } = await diffit('--help');
  t.equal(code, 0);
  for (const command of ['info', 'train', 'sample', 'data', 'bench']) t.match(out, new RegExp(`\\b${command}\\b`));
  const version = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
  t.match(await diffit('--version'), { code: 0, out: `${version}\n` });
  t.match(await diffit('train', '--help'), { code: 0, out: /--checkpoint-every <n>/ });
});

t.test('info', async (t) => {
  const { code, out } = await diffit('info', '--json');
  t.equal(code, 0);
  const report = JSON.parse(out);
  t.equal(report.node, process.versions.node);
  t.match(report.devices[0], { name: 'cpu', available: true, threads: Number });
  t.match(report.devices[1], { name: 'cuda' });
  t.ok(report.addon.operations > 20 && report.cpuVariants.length > 0);
  t.match(await diffit('info'), { code: 0, out: /^diffit .*\naddon: .*\ncpu: /, err: '' });
});

t.test('bad usage: one line, a suggestion, exit code 2', async (t) => {
  for (const [argv, message] of [
    [['smaple'], /unknown command 'smaple' \(Did you mean sample\?\)/],
    [['sample', '--lables', '1'], /unknown option '--lables' \(Did you mean --labels\?\)/],
    [
      ['sample', '--labels', 'a-b', '--preset', 'mnist'],
      /Class "a-b": this model's classes have no names; give numbers, 0 to 9/,
    ],
    [['sample', '--num', '0', '--preset', 'mnist'], /integer of at least 1/],
    [['sample', '--num', '1.5'], /integer of at least 1/],
    [['sample', '--churn', '-1'], /number of at least 0/],
    [['sample', '--sampler', 'euler'], /Allowed choices are edm, ddpm, ddim, dpm/],
    [['sample', '--num'], /argument missing/],
    [['sample'], /Give --preset NAME for shipped weights, or --checkpoint FILE/],
    [['sample', '--preset', 'mnist', '--checkpoint', 'x'], /not both/],
    [['sample', '--preset', 'mnits'], /Unknown preset "mnits"; did you mean "mnist"\?/],
    [['train', '--steps', '5'], /Give --preset NAME or --recipe FILE/],
    [['train', '--preset', 'mnist', '--recipe', 'x'], /not both/],
    [['train', '--preset', 'cifar1', '--steps', '5'], /did you mean "cifar10"\?/],
    [['train', '--preset', 'mnist'], /Give --steps N/],
    [['train', '--preset', 'cifar10', '--steps', '5'], /Give --data PATH/],
    [['train', '--preset', 'mnist', '--steps', '5', '--device', 'gpu'], /Unknown device "gpu"/],
    [['train', '--preset', 'mnist', '--steps', '5', '--lr', 'fast'], /number of at least 0/],
    [['data'], /missing required argument 'path'/],
    [['info', 'more'], /too many arguments/],
  ] as [string[], RegExp][]) {
    const { code, out, err } = await diffit(...argv);
    const name = argv.join(' ');
    t.equal(code, 2, name);
    t.match(err, message, name);
    t.equal(err.trim().split('\n').length, 1, `one line: ${err}`);
    t.equal(out, '', name);
  }
});

t.test('a failed run: exit code 1, one line, JSON or a stack on request', async (t) => {
  const folder = temporaryFolder(t);
  const argv = ['sample', '--checkpoint', join(folder, 'none.safetensors'), '--out', join(folder, 'x.png')];
  const { code, err } = await diffit(...argv);
  t.equal(code, 1);
  t.match(err, /^error: .*none\.safetensors cannot be read: there is no such file or folder\.\n$/);
  t.match(JSON.parse((await diffit(...argv, '--json')).err), {
    error: { code: 'DIFFIT_FILE', message: /cannot be read/ },
  });
  t.match((await diffit(...argv, '--verbose')).err, /\n\s+at /);
  t.notOk(existsSync(join(folder, 'x.png')));
  t.match(await diffit('sample', '--preset', 'ffhq64'), { code: 1, err: /ships no weights for preset "ffhq64"/ });
  t.match(await diffit('data', join(folder, 'none')), { code: 1, err: /none/ });
});

t.test('output that cannot be written is refused before any work', async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, 'file');
  writeFileSync(file, '');
  const train = ['train', '--preset', 'mnist', '--steps', '1'];
  t.match(await diffit(...train, '--out', file), {
    code: 1,
    err: /file cannot be written: there is a file of that name/,
  });
  t.match(await diffit(...train, '--out', join(file, 'x')), {
    code: 1,
    err: /file cannot be written: there is a file of that name/,
  });
  if (process.platform === 'linux') {
    t.match(await diffit(...train, '--out', '/proc/x/y'), { code: 1, err: /\/proc\/x cannot be written/ });
  }
  const sample = ['sample', '--checkpoint', file];
  t.match(await diffit(...sample, '--out', join(folder, 'x.jpg')), { code: 2, err: /must end in \.png/ });
  t.match(await diffit(...sample, '--npz', folder), { code: 1, err: /it is a folder/ });
  t.match(await diffit(...sample, '--out-dir', file), { code: 1, err: /there is a file of that name/ });
});

t.test('lists of labels', async (t) => {
  t.same(classList('0-9'), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  t.same(classList('207, 360-362'), [207, 360, 361, 362]);
  t.same(classList('3, golden retriever,otter'), [3, 'golden retriever', 'otter']);
  for (const bad of ['', '3-1', '-1', '1,,2', '0-100000', '1.5', '?']) t.throws(() => classList(bad), bad);
});

t.test('progress is a line now and then in a pipe, and nothing with --json', async (t) => {
  const lines: string[] = [];
  const streams = { stdout: { write: () => {} }, stderr: { write: (text: string) => void lines.push(text) } };
  const progress = await new Terminal(streams, false).progress('Work', 3);
  for (const done of [1, 2, 3]) progress.update(done, 'going');
  progress.note('a file');
  progress.stop();
  t.same(lines, ['Work 3/3  going\n', 'a file\n']);
  const quiet = await new Terminal(streams, true).progress('Work', 1);
  quiet.update(1);
  quiet.note('x');
  t.equal(lines.length, 2);
});
