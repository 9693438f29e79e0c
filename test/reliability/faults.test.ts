/** A few of the faults that `npm run test:faults` plays by the hundred. */
import t from 'tap';
import { killRuns } from './kills.js';
import { mountFaults, playFault, whyNoMounts } from './mounts.js';

t.test('killed at random moments and resumed, a run ends where an undisturbed one does', async (t) => {
  const { kills, runs } = await killRuns(4, Date.now(), () => undefined);
  t.ok(kills >= 4 && runs >= 1);
});

for (const fault of mountFaults) {
  t.test(`a folder whose disk is ${fault}`, { skip: whyNoMounts() ?? false }, async (t) => {
    t.match(playFault(fault), /^error: .* cannot be written: [^.]*\.$/);
  });
}
