/** Class names of ImageNet: known labels, and the errors a typo gives. */
import t from 'tap';
import { imagenetClasses, imagenetLabel } from '../../lib/data/imagenet.js';

t.test('1000 different names, at their labels', async (t) => {
  t.equal(imagenetClasses.length, 1000);
  t.equal(new Set(imagenetClasses).size, 1000);
  t.ok(
    imagenetClasses.every((name) => /^[A-Za-z' -]+$/.test(name)),
    'one name each',
  );
  // Labels that the papers' figures name: DiT's and DiffiT's samples.
  const known = {
    'golden retriever': 207,
    otter: 360,
    tench: 0,
    'toilet tissue': 999,
    'lesser panda': 387,
    geyser: 974,
    Cardigan: 264,
    cardigan: 474,
  };
  for (const [name, label] of Object.entries(known)) t.equal(imagenetLabel(name), label, name);
  t.equal(imagenetLabel(' Golden Retriever '), 207, 'in any case');
});

t.test('a wrong name gets suggestions', async (t) => {
  const fails = (name: string, message: RegExp) =>
    t.throws(() => imagenetLabel(name), { name: 'OptionError', message });
  fails('goldn retriever', /Unknown ImageNet class "goldn retriever"\. Did you mean "golden retriever"\?/);
  fails('retriever', /Did you mean "flat-coated retriever", .*"golden retriever"/);
  fails('xyzzyxyzzy', /^Unknown ImageNet class "xyzzyxyzzy"\.$/);
  fails('', /^Unknown ImageNet class ""/);
});
