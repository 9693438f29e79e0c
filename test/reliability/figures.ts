/**
 * The table of docs/reliability.md, from what the long runs wrote to test/reliability/results; figures.test.ts fails when the two differ.
 *
 *     npx tsx test/reliability/figures.ts
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
export const docs = at('../../docs/reliability.md');

/** A long run's report; every script adds figures of its own. */
// biome-ignore lint/suspicious/noExplicitAny: as the scripts write it, of any of them
type Report = Record<string, any>;

function report(name: string): Report | undefined {
  const path = at(`results/${name}.json`);
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : undefined;
}

const count = (value: number): string => value.toLocaleString('en-US');

const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((a, b) => a + b, 0);

/** One line of a run that was done: what was counted, and what went wrong. */
const rows: Record<string, (report: Report) => string[]> = {
  faults: ({ kills, whileWriting, beforeTraining, folders }) => [
    `kill -9 at ${count(kills)} random moments of training, ${whileWriting} with a file half written, ${beforeTraining} before the first step: resumed to the undisturbed run's bits | ${count(kills)} of ${count(kills)}`,
    `folders that fail (${folders.join(', ')}): one error, the last checkpoint intact | ${folders.length} of ${folders.length}`,
  ],
  fuzz: ({ executions, targets }) => [
    `hostile inputs to ${targets.length} readers and to the addon's own functions | ${count(executions)} executions, ${targets.filter(({ finding }: Report) => finding).length} findings`,
  ],
  sanitize: ({ parts }) =>
    Object.entries(parts as Record<string, Report>)
      .filter(([, { whole }]) => whole)
      .map(
        ([part, { runs, tests, findings }]) =>
          `${sanitizers[part] ?? part} | ${tests ? `${count(tests)} tests` : `${runs} files`}, ${findings.length} findings`,
      ),
  soak: ({ minutes, rounds, endings, measures }) => [
    `mixed work with workers, aborts and errors; ${Object.keys(measures).join(', ')}: flat | ${(minutes / 60).toFixed(1)} hours, ${count(sum(rounds))} pieces of work; ${Object.values(measures as Record<string, Report>).filter(({ flat }) => !flat).length} grow`,
    `processes that end with work in the queue | ${endings} of ${endings}`,
  ],
};

const sanitizers: Record<string, string> = {
  address:
    'AddressSanitizer and UndefinedBehaviorSanitizer over the suites of operations, layers and the addon, and a training',
  thread: 'ThreadSanitizer over the suites of operations and the addon, and a training',
  valgrind: 'valgrind memcheck over a training and its resumption',
  tidy: 'clang-tidy over the native sources',
  cppcheck: 'cppcheck over the native sources',
};

/** The table, in Markdown, of the runs that there are. */
export function figuresTable(): string {
  const lines = Object.entries(rows).flatMap(([name, describe]) => {
    const found = report(name);
    if (!found) return [];
    const date = (found.date ?? Object.values(found.parts as Record<string, Report>)[0].date).slice(0, 10);
    return describe(found).map((row) => `| ${row} | \`npm run test:${name}\`, ${date} |`);
  });
  return ['| what | figure | from |', '|---|---|---|', ...lines].join('\n');
}

const region = /<!-- figures -->[\s\S]*?<!-- end -->/;

/** A page with its region of figures replaced. */
export function withFigures(text: string): string {
  if (!region.test(text)) throw new Error('the page has no <!-- figures --> ... <!-- end -->');
  return text.replace(region, `<!-- figures -->\n\n${figuresTable()}\n\n<!-- end -->`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(docs, withFigures(readFileSync(docs, 'utf8')));
}
