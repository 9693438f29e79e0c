/**
 * Prints `N passed, N failed, N skipped` for a file of TAP output, after the names of what failed: assertions are counted, not the subtests
 * around them; a test file that crashed or ended early without a failed assertion counts as one failure. Exits 1 when anything failed or
 * nothing ran.
 *
 *     node scripts/test-summary.mjs FILE [--failed-stages N]     N failures more, of what is not a test
 */

import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import { Parser } from 'tap-parser';

const counts = { passed: 0, failed: 0, skipped: 0 };
const failures = [];

function count(parser) {
  let child;
  let failedBefore = 0;
  parser.on('child', (subtest) => {
    child = subtest;
    failedBefore = counts.failed;
    count(subtest);
  });
  parser.on('assert', ({ ok, skip, todo, fullname, name }) => {
    const fail = () => {
      counts.failed++;
      failures.push(fullname ?? name);
    };
    const closesSubtest = child !== undefined;
    child = undefined;
    if (closesSubtest) {
      if (!ok && !todo && !skip && counts.failed === failedBefore) fail();
    } else if (skip || todo) counts.skipped++;
    else if (ok) counts.passed++;
    else fail();
  });
}

const { values, positionals } = parseArgs({
  options: { 'failed-stages': { type: 'string', default: '0' } },
  allowPositionals: true,
});
const [file] = positionals;
const parser = new Parser();
count(parser);
await pipeline(createReadStream(file), parser).catch((error) => {
  console.error(`There are no test results: ${error.message}`);
});
for (const name of failures) console.log(`failed: ${name}`);
const stages = Number(values['failed-stages']);
if (counts.passed + counts.failed === 0) counts.failed++; // the tests did not run at all
counts.failed += stages;
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed > 0 || counts.passed === 0 ? 1 : 0);
