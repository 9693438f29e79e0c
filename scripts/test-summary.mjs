/**
 * Prints `N passed, N failed, N skipped` for a file of TAP output: assertions are counted, not the subtests around
 * them; a test file that crashed or ended early without a failed assertion counts as one failure. Exits 1 when
 * anything failed or nothing ran.
 */
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { Parser } from 'tap-parser';

const counts = { passed: 0, failed: 0, skipped: 0 };

function count(parser) {
  let child;
  let failedBefore = 0;
  parser.on('child', (subtest) => {
    child = subtest;
    failedBefore = counts.failed;
    count(subtest);
  });
  parser.on('assert', ({ ok, skip, todo }) => {
    const closesSubtest = child !== undefined;
    child = undefined;
    if (closesSubtest) {
      if (!ok && !todo && !skip && counts.failed === failedBefore) counts.failed++;
    } else if (skip || todo) counts.skipped++;
    else if (ok) counts.passed++;
    else counts.failed++;
  });
}

const [file] = process.argv.slice(2);
const parser = new Parser();
count(parser);
await pipeline(createReadStream(file), parser).catch((error) => {
  console.error(`There are no test results: ${error.message}`);
});
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed > 0 || counts.passed === 0 ? 1 : 0);
