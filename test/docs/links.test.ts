/** Every relative link of the pages and of examples/README.md leads to a file that is there, and every anchor to a heading. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import t from 'tap';
import { anchorsOf, linksIn, pages, readPage, root } from './markdown.js';

type Read = (path: string) => string | undefined;

/** What is wrong with the links of a page, as sentences. */
function broken(page: string, text: string, read: Read): string[] {
  return linksIn(text).flatMap(({ target, line }) => {
    if (/^(https?|mailto):/.test(target)) return [];
    const [path, anchor] = decodeURIComponent(target).split('#');
    const file = path === '' ? page : normalize(join(dirname(page), path));
    const found = file === page ? text : read(file);
    if (found === undefined) return [`${page}:${line}: ${target}: there is no ${file}`];
    if (anchor === undefined || !file.endsWith('.md')) return [];
    return anchorsOf(found).has(anchor) ? [] : [`${page}:${line}: ${target}: ${file} has no such heading`];
  });
}

const onDisk: Read = (path) => {
  const file = join(root, path);
  if (path.startsWith('..') || !existsSync(file)) return undefined;
  return statSync(file).isFile() ? readFileSync(file, 'utf8') : '';
};

t.test('relative links and anchors resolve', async (t) => {
  for (const page of [...pages, 'examples/README.md']) {
    const text = readPage(page);
    t.same(broken(page, text, onDisk), [], `${page}: ${linksIn(text).length} links`);
  }
});

t.test('every page can be reached from the README', async (t) => {
  const seen = new Set(['README.md']);
  for (const page of seen) {
    for (const { target } of linksIn(readPage(page))) {
      const file = normalize(join(dirname(page), target.split('#')[0]));
      if (pages.includes(file)) seen.add(file);
    }
  }
  t.same(
    pages.filter((page) => !seen.has(page)),
    [],
  );
});

t.test('the test can fail', async (t) => {
  const read: Read = (path) =>
    path === 'docs/b.md' ? '# One\n## Two, and `three`\n```sh\n# no heading\n```\n' : undefined;
  const of = (text: string): string[] => broken('docs/a.md', text, read);
  t.match(of('[x](c.md)'), [/docs\/a\.md:1: c\.md: there is no docs\/c\.md/]);
  t.match(of('\n![x](../images/x.png)'), [/a\.md:2: .*there is no images\/x\.png/]);
  t.match(of('[x](b.md#two)'), [/b\.md has no such heading/]);
  t.match(of('[x](b.md#no-heading)'), [/no such heading/]);
  t.match(of('[x](#here)'), [/no such heading/]);
  t.match(of('<img src="x.png">'), [/there is no/]);
  t.same(of('[x](b.md#two-and-three) [y](b.md) [z](https://example.com)\n# Here\n[h](#here)\n`[no](link.md)`'), []);
});
