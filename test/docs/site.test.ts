/** The site that `npm run docs` makes: no warning, every link and picture is there, and in a browser it reads at the width of a phone too. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify, stripVTControlCharacters } from 'node:util';
import t, { type Test } from 'tap';
import { openBrowser } from '../train/browser.js';
import { temporaryFolder } from '../train/fixtures.js';
import { pages, readPage, root } from './markdown.js';

/** Links of the built pages that lead nowhere. */
function deadLinks(site: string): string[] {
  const files = readdirSync(site, { recursive: true, encoding: 'utf8' });
  const ids = new Map<string, Set<string>>();
  const html = files.filter((file) => file.endsWith('.html'));
  for (const file of html) {
    const text = readFileSync(join(site, file), 'utf8');
    ids.set(file, new Set([...text.matchAll(/ id="([^"]+)"/g)].map(([, id]) => id)));
  }
  const present = new Set(files);
  return html.flatMap((file) => {
    const text = readFileSync(join(site, file), 'utf8');
    const targets = [...text.matchAll(/<(?:a|img|link|script)\b[^>]*? (?:href|src)="([^"]+)"/g)].map(
      ([, target]) => target,
    );
    return targets.flatMap((target) => {
      if (/^(https?|mailto|data):/.test(target)) return [];
      const url = new URL(target.replaceAll('&amp;', '&'), pathToFileURL(join(site, file)));
      const to = relative(site, fileURLToPath(new URL(url.pathname, 'file:')));
      if (!present.has(to)) return [`${file}: ${target}`];
      const anchor = decodeURIComponent(url.hash.slice(1));
      return anchor === '' || !ids.has(to) || ids.get(to)?.has(anchor) ? [] : [`${file}: ${target}`];
    });
  });
}

const types: Record<string, string> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
};

/** Serves a folder, until the test ends; resolves with its address. */
async function serve(t: Test, folder: string): Promise<string> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? '/', 'http://localhost');
    try {
      const content = readFileSync(join(folder, decodeURIComponent(pathname)));
      response.writeHead(200, { 'content-type': types[extname(pathname)] ?? 'application/octet-stream' }).end(content);
    } catch {
      response.writeHead(pathname === '/favicon.ico' ? 204 : 404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

t.test('the site', { timeout: 280_000 }, async (t) => {
  const site = temporaryFolder(t);
  const typedoc = join(root, 'node_modules/typedoc/bin/typedoc');
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [typedoc, '--out', site], { cwd: root });
  const warnings = stripVTControlCharacters(stdout + stderr)
    .split('\n')
    .filter((line) => /warning|error/i.test(line));
  t.same(warnings, []);
  t.same(deadLinks(site), []);

  // Every page of docs/ has become one, under its own heading.
  const titles = pages.slice(1).map((page) => /^# (.+)$/m.exec(readPage(page))?.[1] as string);
  const built = readdirSync(join(site, 'documents')).map((file) => readFileSync(join(site, 'documents', file), 'utf8'));
  for (const title of titles)
    t.ok(
      built.some((html) => html.includes(`<title>${title} |`)),
      title,
    );

  const address = await serve(t, site);
  const browser = await openBrowser(t);
  if (!browser) return;
  for (const width of [1280, 390]) {
    const page = await browser.newPage({ viewport: { width, height: 800 } });
    const problems: string[] = [];
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('response', (response) => {
      if (response.status() >= 400) problems.push(response.url());
    });
    for (const file of ['index.html', ...readdirSync(join(site, 'documents')).map((name) => `documents/${name}`)]) {
      await page.goto(`${address}/${file}`, { waitUntil: 'load' });
      const found = (await page.evaluate(`({
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        pictures: [...document.images].filter((i) => !i.complete || i.naturalWidth === 0).map((i) => i.src),
        headings: document.querySelectorAll('h1').length,
      })`)) as { overflow: number; pictures: string[]; headings: number };
      if (found.overflow > 0) problems.push(`${file} is ${found.overflow} pixels too wide at ${width}`);
      if (found.pictures.length > 0) problems.push(`${file}: ${found.pictures} did not load`);
      if (found.headings !== 1) problems.push(`${file} has ${found.headings} headings of the first level`);
    }
    t.same(problems, [], `${width} pixels wide`);
    await page.close();
  }

  const page = await browser.newPage();
  await page.goto(`${address}/documents/Architecture.html`);
  const groups = await page.locator('.tsd-navigation.tsd-accordion, nav.tsd-navigation').first().innerText();
  t.match(groups, /Start[\s\S]*Guides[\s\S]*Reference[\s\S]*Working on diffit/, 'the groups of pages, in order');
  const drawn = await page.evaluate(`document.querySelector('img[src$="architecture.svg"]').naturalWidth`);
  t.equal(drawn, 640, 'the picture of the rooms is drawn');
});

t.test('the test can fail', async (t) => {
  const site = temporaryFolder(t);
  writeFileSync(
    join(site, 'a.html'),
    '<a href="b.html">x</a><a class="y" href="a.html#no">z</a><img src="c.png"><a href="#here" id="here">h</a>',
  );
  t.same(deadLinks(site), ['a.html: b.html', 'a.html: a.html#no', 'a.html: c.png']);
});
