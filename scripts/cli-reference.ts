/**
 * docs/cli.md from what the commands say themselves with --help.
 *
 *     npx tsx scripts/cli-reference.ts     writes it; a test compares
 */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { run } from '../lib/cli/program.js';

/** A command's help, taken apart. */
interface Help {
  usage: string;
  description: string;
  /** What stands under "Arguments:", "Options:" and "Commands:", as [term, text]. */
  sections: Record<string, [term: string, text: string][]>;
}

async function help(...command: string[]): Promise<Help> {
  let text = '';
  const streams = { stdout: { write: (part: string) => (text += part) }, stderr: { write: () => {} } };
  const code = await run([...command, '--help'], streams);
  if (code !== 0) throw new Error(`diffit ${command.join(' ')} --help ends with ${code}`);
  const [usage, ...blocks] = text.trim().split('\n\n');
  const sections: Help['sections'] = {};
  const description: string[] = [];
  for (const block of blocks) {
    const [, title, body] = /^(\w+):\n([\s\S]*)$/.exec(block) ?? [];
    if (title === undefined) description.push(block.replaceAll('\n', ' '));
    else sections[title] = entries(body);
  }
  return { usage: usage.replace(/^Usage: /, ''), description: description.join(' '), sections };
}

/** Lines "  term   text", the text going on in lines that are indented further. */
function entries(body: string): [string, string][] {
  const found: [string, string][] = [];
  for (const line of body.split('\n')) {
    const [, term, text] = /^ {2}(\S.*?)(?: {2,}(.*))?$/.exec(line) ?? [];
    if (term !== undefined) found.push([term, text ?? '']);
    else found[found.length - 1][1] += ` ${line.trim()}`;
  }
  return found.map(([term, text]) => [term, text.trim()]);
}

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('<', '&lt;');

function table(head: string, rows: [string, string][]): string {
  return [`| ${head} | |`, '|---|---|', ...rows.map(([term, text]) => `| \`${term}\` | ${cell(text)} |`)].join('\n');
}

/** Options that every command has, told once. */
const common = new Set(['--json', '--verbose', '-h, --help']);

async function section(level: number, ...command: string[]): Promise<string> {
  const { usage, description, sections } = await help(...command);
  const { Arguments: args, Options: options = [], Commands: commands = [] } = sections;
  const own = options.filter(([term]) => !common.has(term));
  const parts = [`${'#'.repeat(level)} diffit ${command.join(' ')}`, description, `\`${usage}\``];
  if (args) parts.push(table('argument', args));
  if (own.length > 0) parts.push(table('option', own));
  for (const [term] of commands) parts.push(await section(level + 1, ...command, term.split(' ')[0]));
  return parts.join('\n\n');
}

/** The page. */
export async function cliReference(): Promise<string> {
  const { sections } = await help();
  const names = sections.Commands.map(([term]) => term.split(' ')[0]).filter((name) => name !== 'help');
  const parts = [
    '<!-- made by scripts/cli-reference.ts from the commands themselves -->',
    '# The command line',
    'Every command takes `--json` (machine-readable on stdout), `--verbose` (a stack trace when something fails) and `--help`. Exit codes: 0; 2 for bad ' +
      'usage; 1 for a run that failed; 130 and 143 after Ctrl-C and SIGTERM. An error is one line on stderr.',
  ];
  for (const name of names) parts.push(await section(2, name));
  return `${parts.join('\n\n')}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL('../docs/cli.md', import.meta.url), await cliReference());
}
