/** Reports in a browser: what is drawn, what the controls do, and that nothing is fetched. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import t, { type Test } from 'tap';
import { decodeImage } from '../../lib/io/image.js';
import { writeReport } from '../../lib/train/index.js';
import { openBrowser } from './browser.js';
import { temporaryFolder } from './fixtures.js';
import { makeRun, record, step } from './report-fixtures.js';

const last = 1500;
const spike = 700;

/** A page of one run, with a spike, two steps that are not finite, and four grids. */
async function onePage(t: Test): Promise<string> {
  const log = Array.from({ length: last }, (_, i) => step(i + 1, { gradNorm: 1 + 1 / (i + 1), memoryBytes: 2 ** 28 }));
  log[spike - 1].loss = 90;
  log[399].loss = null;
  log[400].loss = null;
  const folder = join(temporaryFolder(t), 'a <b> & "c"');
  await makeRun(folder, {
    record: record({ steps: 2000, status: 'interrupted' }),
    log,
    samples: [300, 600, 900, 1200],
  });
  return (await writeReport(folder)).path;
}

/** A page of three runs of different lengths. */
async function threePages(t: Test): Promise<string> {
  const root = temporaryFolder(t);
  const samples = [
    [50, 100, 300],
    [100, 200],
    [40, 150],
  ]; // the last run has undone its step 150
  const folders = await Promise.all(
    [300, 200, 100].map((length, i) =>
      makeRun(join(root, `run-${i}`), {
        record: record({ config: { training: { lr: 10 ** -i, batch: 32 } } }),
        log: Array.from({ length }, (_, k) => step(k + 1)),
        samples: samples[i],
      }),
    ),
  );
  return (await writeReport(folders, { out: join(root, 'report.html') })).path;
}

interface Visit {
  page: Page;
  /** What went wrong, and addresses that were asked for. */
  problems: string[];
  requests: string[];
}

async function visit(browser: Browser, path: string, options: Parameters<Browser['newPage']>[0] = {}): Promise<Visit> {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
  const [problems, requests]: string[][] = [[], []];
  page.on('console', (message) => problems.push(message.text()));
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('request', (request) => requests.push(request.url()));
  await page.goto(pathToFileURL(path).href);
  return { page, problems, requests };
}

/** Expressions that are evaluated in the page: this program knows no types of a browser's. */
const fits = 'document.documentElement.scrollWidth <= innerWidth';
const pathsIn = (selector: string): string =>
  `[...document.querySelectorAll('${selector}')].filter((path) => path.getClientRects().length > 0)
    .map((path) => [path.getAttribute('class'), path.getAttribute('d'), getComputedStyle(path).stroke])`;

/** Points of the visible curves of a chart, by their class. */
async function curves(page: Page, chart: string): Promise<Record<string, [number, number][]>> {
  const found = await page.evaluate<[string, string][]>(pathsIn(`#chart-${chart} svg .run path`));
  const pointsOf = (path: string): [number, number][] =>
    path
      .split(/[ML]/)
      .filter(Boolean)
      .map((point) => point.split(' ').map(Number) as [number, number]);
  return Object.fromEntries(found.map(([name, path]) => [name, pointsOf(path)]));
}

/** Mean brightness of a screenshot, 0 to 255, and how many different bytes it has. */
async function look(page: Page): Promise<{ mean: number; width: number; colours: number }> {
  const { data, width } = await decodeImage(await page.screenshot(), 'screenshot');
  return { mean: data.reduce((sum, value) => sum + value, 0) / data.length, width, colours: new Set(data).size };
}

const shown = (page: Page, selector: string) => page.locator(selector).first();

t.test('a report in a browser', async (t) => {
  const browser = await openBrowser(t);
  if (!browser) return;
  const [one, three] = [await onePage(t), await threePages(t)];

  await t.test('draws its curves within the frame, asks for nothing and complains about nothing', async (t) => {
    const { page, problems, requests } = await visit(browser, one);
    t.equal(await page.title(), 'a <b> & "c" · training report');
    t.equal(await page.locator('h1').textContent(), 'a <b> & "c"');
    t.equal(await page.locator('.title .status').textContent(), 'Interrupted');
    t.same(await page.locator('.chart h3').allTextContents(), [
      'Loss',
      'Learning rate',
      'Throughput images/s',
      'Gradient norm before clipping',
      'Memory held from the device',
    ]);
    for (const chart of ['loss', 'lr', 'imagesPerSecond', 'gradNorm', 'memoryBytes']) {
      const drawn = await curves(page, chart);
      t.ok(Object.keys(drawn).length >= 1, chart);
      for (const [name, points] of Object.entries(drawn)) {
        t.ok(points.length > 100 && points.length <= 2 * 600, `${chart} ${name}: ${points.length} points`);
        t.ok(
          points.every(([x, y]) => x >= 0 && x <= 1000 && y >= 0 && y <= 400),
          `${chart} ${name} stays in the view box`,
        );
        t.ok(
          points[points.length - 1][0] > 990 && points[0][0] < 10,
          `${chart} ${name} reaches from the first step to the last`,
        );
      }
    }
    const { raw, 'smooth s2': smooth } = await curves(page, 'loss');
    const [top] = [...raw].sort(([, a], [, b]) => a - b);
    t.ok(Math.abs(top[0] - (1000 * spike) / last) < 2 && top[1] < 60, 'the spike is the highest point, at its step');
    t.ok(smooth[0][1] < smooth[smooth.length - 1][1], 'a falling loss goes down');
    t.equal(await page.locator('#chart-loss .broken title').textContent(), 'Loss: not finite at 2 steps: 400 to 401');
    t.equal(await page.locator('#chart-loss .broken-note').innerText(), 'Not finite at 2 steps: 400 to 401.');
    t.ok(await page.evaluate(fits), 'no sideways scrolling');
    t.same(problems, []);
    t.same(
      requests.filter((url) => !/^(file|data):/.test(url)),
      [],
    );
    t.equal(requests.filter((url) => url.startsWith('file:')).length, 1, 'the page is one file');
    t.ok((await look(page)).colours > 50, 'the screenshot shows something');
    await page.close();
  });

  await t.test('pointing, keys, axes and smoothing', async (t) => {
    const { page, problems } = await visit(browser, one);
    const values = page.locator('#chart-loss .values');
    const rest = await values.innerText();
    const box = (await page.locator('#chart-loss .plot').boundingBox())!;
    await page.mouse.move(box.x + box.width * (spike / last), box.y + box.height / 2);
    t.match(await values.innerText(), /step 700\s.*90$/s, 'the range under the pointer has the spike in it');
    t.match(await page.locator('#chart-lr .values').innerText(), /step 700\s+0\.001$/, 'and so do the other charts');
    const dot = (await page.locator('#chart-lr .dot').boundingBox())!;
    const plot = (await page.locator('#chart-lr .plot').boundingBox())!;
    t.ok(dot.x >= plot.x - 9 && dot.x <= plot.x + plot.width && dot.y >= plot.y - 9 && dot.y <= plot.y + plot.height);
    await page.mouse.move(2, 2);
    t.equal(await values.innerText(), rest);
    await page.locator('#chart-loss').focus();
    await page.keyboard.press('Home');
    t.match(await values.innerText(), /^step 0/);
    await page.keyboard.press('ArrowRight');
    t.match(await values.innerText(), /^step 8/);
    await page.keyboard.press('Escape');
    t.equal(await values.innerText(), rest);

    const log = await curves(page, 'loss');
    await page.locator('#chart-loss .scale').click();
    t.equal(await page.locator('#chart-loss .scale').getAttribute('aria-pressed'), 'false');
    t.notSame((await curves(page, 'loss')).raw, log.raw, 'the linear axis has other curves');
    await page.locator('.choice label', { hasText: 'off' }).click();
    t.same(Object.keys(await curves(page, 'loss')), ['raw']);
    await page.locator('.choice label', { hasText: 'strong' }).click();
    t.same(Object.keys(await curves(page, 'loss')), ['raw', 'smooth s3']);
    t.same(problems, []);
    await page.close();
  });

  await t.test('the slider goes through the samples', async (t) => {
    const { page } = await visit(browser, one);
    const [viewer, slider] = [page.locator('.viewer img'), page.locator('#sample-step')];
    t.equal(await page.locator('.thumb').count(), 4);
    const sources = [await viewer.getAttribute('src')];
    t.match(await page.locator('.viewer figcaption').textContent(), 'after step 1,200');
    await slider.focus();
    for (const step of ['900', '600', '300']) {
      await page.keyboard.press('ArrowLeft');
      t.equal(await page.locator('.slider output').textContent(), step);
      sources.push(await viewer.getAttribute('src'));
    }
    t.equal(new Set(sources).size, 4, 'four images');
    t.ok(sources.every((source) => source?.startsWith('data:image/png;base64,')));
    t.ok(await page.evaluate("document.querySelector('.viewer img').naturalWidth === 40"), 'it is decoded');
    await page.locator('.thumb[data-step="900"]').click();
    t.equal(await slider.inputValue(), '2');
    t.equal(await viewer.getAttribute('src'), sources[1]);
    await page.locator('#play').click();
    await page.locator('#play', { hasText: 'Play' }).waitFor();
    t.equal(await viewer.getAttribute('src'), sources[0], 'playing ends at the last');
    await page.close();
  });

  await t.test('several runs: shown and hidden, samples side by side, what differs', async (t) => {
    const { page, problems } = await visit(browser, three);
    t.equal(await page.locator('h1').textContent(), '3 runs compared');
    t.equal(await page.locator('#chart-loss .linear .run').count(), 3);
    const raw = await page.evaluate<[string, string, string][]>(pathsIn('#chart-loss .log .run .raw'));
    const ends = raw.map(([, path]) => Number(/([\d.]+) [\d.]+$/.exec(path)?.[1]));
    const expected = [1000, 667, 333];
    t.ok(
      ends.every((end, i) => Math.abs(end - expected[i]) < 5),
      `on one axis: ${ends}`,
    );
    t.equal(new Set(raw.map(([, , stroke]) => stroke)).size, 3, 'in colours of their own');
    await page.locator('input[data-run="1"]').uncheck();
    t.notOk(await shown(page, '#chart-loss .log .run-1').isVisible());
    t.notOk(await shown(page, '.samples.run-1').isVisible());
    t.ok(await shown(page, '#chart-loss .log .run-0').isVisible());
    await page.locator('input[data-run="1"]').check();
    t.ok(await shown(page, '#chart-loss .log .run-1').isVisible());
    const captions = page.locator('.viewer figcaption');
    t.same(await captions.allTextContents(), ['after step 300', 'after step 200', 'after step 40']);
    await page.locator('#sample-step').focus();
    for (let i = 0; i < 2; i++) await page.keyboard.press('ArrowLeft');
    t.same(
      await captions.allTextContents(),
      ['after step 100', 'after step 100', 'after step 40'],
      'the latest until then',
    );
    t.same(await page.locator('.settings tr:visible th[scope=row]').allTextContents(), ['lr'], 'only what differs');
    await page.locator('#only-differences').uncheck();
    t.ok((await page.locator('.settings tr:visible th[scope=row]').count()) > 3);
    t.same(problems, []);
    await page.close();
  });

  await t.test('light, dark, narrow, on paper, and without scripts', async (t) => {
    const means: Record<string, number> = {};
    for (const colorScheme of ['light', 'dark'] as const) {
      for (const [name, path] of Object.entries({ one, three })) {
        const { page, problems } = await visit(browser, path, { colorScheme, viewport: { width: 390, height: 844 } });
        means[`${colorScheme} ${name}`] = (await look(page)).mean;
        t.ok(await page.evaluate(fits), `${name} fits a telephone`);
        t.same(problems, []);
        await page.close();
      }
    }
    for (const name of ['one', 'three']) {
      t.ok(means[`light ${name}`] > 200 && means[`dark ${name}`] < 70, JSON.stringify(means));
    }
    const context = await browser.newContext({ javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(pathToFileURL(one).href);
    t.notOk(await page.locator('#play').isVisible(), 'controls that would do nothing are not there');
    t.notOk(await page.locator('.viewer').isVisible());
    t.equal(await page.locator('.thumb img:visible').count(), 4);
    t.ok(await page.locator('#chart-loss svg').isVisible());
    t.match(await page.locator('#chart-loss .values').innerText(), /^0\.\d+/);
    await page.emulateMedia({ media: 'print' });
    t.ok((await page.pdf({ format: 'A4' })).length > 10_000);
    await context.close();
  });
});
