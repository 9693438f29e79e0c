/** Which reports of the sanitizers count: those with the addon in a stack (`npm run test:sanitize -- --quick` plants errors for them to see). */
import t from 'tap';
import { isOurs, splitReports } from './instrument.js';

const frame = (place: string): string => `    #0 0x7f01 in f ${place}\n`;
const addon = '(/x/build/address/build/Release/diffit.node+0x123)';
const node = '(/usr/bin/node+0xc6d562)';

t.test('AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer', async (t) => {
  const text = [
    `=================================================================\n==9==ERROR: AddressSanitizer: heap-buffer-overflow\n${frame(addon)}`,
    `==9==ERROR: LeakSanitizer: detected memory leaks\n`,
    `Direct leak of 1000 byte(s) in 1 object(s) allocated from:\n${frame(addon)}`,
    `Indirect leak of 8 byte(s) in 1 object(s) allocated from:\n${frame(node)}`,
    `/x/native/cpu/index.h:16:30: runtime error: signed integer overflow\n${frame(addon)}`,
    'SUMMARY: AddressSanitizer: 1008 byte(s) leaked in 2 allocation(s).\n',
  ].join('\n');
  const reports = splitReports('address', text);
  t.match(reports, [/heap-buffer-overflow/, /leak of 1000/, /leak of 8/, /signed integer overflow/]);
  t.same(reports.map(isOurs), [true, true, false, true]);
});

t.test('ThreadSanitizer', async (t) => {
  const race = (place: string): string =>
    `==================\nWARNING: ThreadSanitizer: data race (pid=9)\n${frame(place)}==================\n`;
  const reports = splitReports('thread', `${race(addon)}${race(node)}ThreadSanitizer: reported 2 warnings\n`);
  t.same(reports.map(isOurs), [true, false]);
});

t.test('memcheck', async (t) => {
  const error = (place: string): string =>
    `==9== Invalid read of size 4\n==9==    at 0x1234: f (in ${place})\n==9== \n`;
  const reports = splitReports(
    'valgrind',
    `==9== Memcheck, a memory error detector\n==9== \n${error('/usr/bin/node')}${error('/x/diffit.node')}`,
  );
  t.same(reports.map(isOurs), [false, true]);
});
