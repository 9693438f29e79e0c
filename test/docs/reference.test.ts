/** Pages that say what the code says: docs/cli.md is what --help says; every error is in docs/troubleshooting.md; commands in the text exist. */
import t from 'tap';
import * as errors from '../../lib/errors.js';
import { cliReference } from '../../scripts/cli-reference.js';
import { pages, readPage } from './markdown.js';

t.test('docs/cli.md is what the commands say', async (t) => {
  t.equal(readPage('docs/cli.md'), await cliReference(), 'npx tsx scripts/cli-reference.ts writes it anew');
});

t.test('docs/troubleshooting.md has every error with its code', async (t) => {
  const page = readPage('docs/troubleshooting.md');
  const made: Record<string, (type: never) => errors.DiffitError> = {
    DiffitError: () => new errors.DiffitError('DIFFIT_NO_ADDON', ''),
    StateDictError: () => new errors.StateDictError('', { missing: [], unexpected: [], misshapen: [] }),
  };
  const types = Object.entries(errors).filter(([, value]) => value.prototype instanceof Error) as [
    string,
    new (message: string, options: object) => errors.DiffitError,
  ][];
  t.ok(types.length >= 13, `${types.length} errors`);
  for (const [name, type] of types) {
    const { code } = made[name]?.(undefined as never) ?? new type('', { path: '' });
    t.match(page, new RegExp(`^\\| \`(${name}|Error)\` \`${code}\` \\|`, 'm'), `${name} ${code}`);
  }
});

/** Options by command, from the tables of docs/cli.md. */
function optionsOf(reference: string): Map<string, Set<string>> {
  const commands = new Map<string, Set<string>>();
  let current = new Set<string>();
  for (const line of reference.split('\n')) {
    const [, command] = /^##+ diffit (.+)$/.exec(line) ?? [];
    if (command !== undefined) {
      current = new Set(['--json', '--verbose', '--help']);
      commands.set(command, current);
    }
    const [, option] = /^\| `(--[a-z-]+)/.exec(line) ?? [];
    if (option !== undefined) current.add(option);
  }
  return commands;
}

/** What inline code of a text gets wrong about the commands: `diffit sample --labels 0-9`. */
function misspelt(text: string, commands: Map<string, Set<string>>): string[] {
  return [...text.matchAll(/`(?:npx )?diffit ([^`]+)`/g)].flatMap(([code, rest]) => {
    const words = rest.split(' ');
    const name = [words.slice(0, 2).join(' '), words[0]].find((known) => commands.has(known));
    if (name === undefined) return words[0].startsWith('--') ? [] : [`${code}: no such command`];
    return words
      .filter((word) => word.startsWith('--') && !commands.get(name)?.has(word))
      .map((word) => `${code}: ${name} has no ${word}`);
  });
}

t.test('commands in the text have the options they name', async (t) => {
  const commands = optionsOf(readPage('docs/cli.md'));
  t.ok(commands.get('data encode')?.has('--shard-size') && commands.get('train')?.has('--resume'));
  for (const page of pages.filter((page) => page !== 'docs/cli.md')) {
    t.same(misspelt(readPage(page), commands), [], page);
  }
  t.match(misspelt('`diffit sample --lables 0-9`', commands), [/sample has no --lables/]);
  t.match(misspelt('`npx diffit smaple`', commands), [/no such command/]);
});
