/** examples/image-endpoint: really requested, aborted in the middle, flooded, closed at work; and looked at in a browser. */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import sharp from 'sharp';
import t, { type Test } from 'tap';
import { loadArtist } from '../../examples/image-endpoint/draw.js';
import { imageServer, type ServerOptions } from '../../examples/image-endpoint/server.js';
import { generate } from '../../lib/train/index.js';
import { settledMemory } from '../helpers.js';
import { openBrowser } from '../train/browser.js';
import { startExample } from './run-example.js';

interface Served {
  /** Where it listens. */
  url: string;
  artist: Awaited<ReturnType<typeof loadArtist>>;
  /** Network evaluations so far. */
  evaluations(): number;
  busy(): Promise<{ running: number; waiting: number }>;
  close(): Promise<void>;
}

/** A server with the shipped weights that the test closes at its end. */
async function serve(t: Test, options: Partial<ServerOptions> = {}): Promise<Served> {
  const artist = await loadArtist();
  let evaluations = 0;
  const forward = artist.model.forward.bind(artist.model);
  artist.model.forward = (...args) => {
    evaluations++;
    return forward(...args);
  };
  const app = imageServer(artist, options);
  t.teardown(() => app.close());
  const url = await app.listen({ port: 0 });
  const busy = async (): Promise<{ running: number; waiting: number }> => {
    const { running, waiting } = (await (await fetch(`${url}/model`)).json()) as { running: number; waiting: number };
    return { running, waiting };
  };
  return { url, artist, evaluations: () => evaluations, busy, close: () => app.close() };
}

interface Event {
  event: string;
  ahead?: number;
  step?: number;
  png?: string;
  error?: string;
}

/** The events of an answer as they come. */
async function* events(response: Response): AsyncGenerator<Event, void, undefined> {
  let text = '';
  for await (const chunk of (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const parts = text.split('\n\n');
    text = parts.pop() as string;
    for (const part of parts) {
      const [, event, data] = /^event: (.*)\ndata: (.*)$/.exec(part) as RegExpExecArray;
      yield { event, ...JSON.parse(data) };
    }
  }
}

async function collected<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

function allEvents(response: Response): Promise<Event[]> {
  return collected(events(response));
}

/** A PNG's grey pixels, from a data URL or bytes. */
async function pixels(png: string | ArrayBuffer): Promise<{ width: number; height: number; data: Buffer }> {
  const bytes = typeof png === 'string' ? Buffer.from(png.split(',')[1], 'base64') : Buffer.from(png);
  const { data, info } = await sharp(bytes).toColourspace('b-w').raw().toBuffer({ resolveWithObject: true });
  return { width: info.width, height: info.height, data };
}

/** Waits until something is so. */
async function until(t: Test, what: string, isSo: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 400; tries++) {
    if (await isSo()) {
      t.pass(what);
      return;
    }
    await sleep(25);
  }
  t.fail(what);
}

t.test('a stream of previews and the image, which is the one that the seed names', async (t) => {
  const { url, artist } = await serve(t);
  const response = await fetch(`${url}/images?label=7&seed=5&steps=6`);
  t.match(response.headers.get('content-type'), 'text/event-stream');
  const found = await allEvents(response);
  t.same(
    found.map(({ event, step }) => [event, step]),
    [['queued', undefined], ...[1, 2, 3, 4, 5].map((step) => ['preview', step]), ['image', 6]],
  );
  const pngs = await Promise.all(found.slice(1).map(({ png }) => pixels(png as string)));
  for (const { width, height } of pngs) t.same([width, height], [32, 32]);
  t.equal(new Set(pngs.map(({ data }) => data.toString('hex'))).size, 6, 'every step shows another image');

  const sampler = { ...artist.description.sampler, steps: 6 };
  const [expected] = await collected(generate(artist.model, { count: 1, labels: [7], seed: 5, sampler }));
  t.ok(pngs[5].data.equals(Buffer.from(expected)), 'the bytes that diffit sample draws');

  const post = await fetch(`${url}/images`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ label: 7, seed: 5, steps: 6 }),
  });
  t.equal(post.headers.get('content-type'), 'image/png');
  t.ok((await pixels(await post.arrayBuffer())).data.equals(Buffer.from(expected)), 'the same from POST');
});

t.test('what is wrong is answered 400 with one sentence', async (t) => {
  const { url, busy } = await serve(t);
  const { liveBuffers } = await settledMemory();
  const wrong: [query: string, sentence: RegExp][] = [
    ['label=12', /^Label 12 is not one of this model's classes, 0 to 9\.$/],
    ['label=abc', /^Label abc is not one of/],
    ['label=', /^Label {2}is not one of/],
    ['steps=0', /^Options: steps is 0, expected an integer of at least 1\.$/],
    ['steps=1e9', /^Options: steps is 1000000000, at most 100 here\.$/],
    ['stepz=4', /^Options: unknown option "stepz" \(did you mean "steps"\?\)\.$/],
    ['seed=-1', /^randn: seed is -1, expected an integer of at least 0\.$/],
    ['cfgScale=x', /^Options: cfgScale is "x", expected a number\.$/],
    ['kind=ddpm', /^The sampler ddpm is not for|^Options: unknown option/],
  ];
  for (const [query, sentence] of wrong) {
    const response = await fetch(`${url}/images?${query}`);
    t.equal(response.status, 400, query);
    t.match(await response.json(), { error: sentence });
  }
  const post = (body: string): Promise<Response> =>
    fetch(`${url}/images`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  for (const body of ['{"label": "seven"}', '{"label":', '[1]']) t.equal((await post(body)).status, 400, body);
  t.equal((await post(`{"label": "${'7'.repeat(5000)}"}`)).status, 413);
  t.equal((await fetch(`${url}/nothing`)).status, 404);
  t.same(await busy(), { running: 0, waiting: 0 });
  t.equal((await settledMemory()).liveBuffers, liveBuffers, 'nothing stays allocated');
});

t.test('a client that goes away stops its drawing', async (t) => {
  const { url, busy, evaluations } = await serve(t);
  const { liveBuffers } = await settledMemory();
  const client = new AbortController();
  const response = await fetch(`${url}/images?steps=100`, { signal: client.signal });
  await t.rejects(async () => {
    for await (const { event } of events(response)) if (event === 'preview') client.abort();
  });
  await until(t, 'its place is free again', async () => (await busy()).running === 0);
  const count = evaluations();
  t.ok(count > 0 && count < 100, `${count} evaluations of 199`);
  await sleep(200);
  t.equal(evaluations(), count, 'nothing is computed any more');
  t.equal((await settledMemory()).liveBuffers, liveBuffers, 'nothing stays allocated');

  const other = new AbortController();
  const posted = fetch(`${url}/images`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"steps": 100}',
    signal: other.signal,
  });
  await until(t, 'a POST is at work', async () => (await busy()).running === 1);
  other.abort();
  await t.rejects(posted);
  await until(t, 'and stopped', async () => (await busy()).running === 0);
});

t.test('a flood: some wait, the rest are told so, and who leaves makes room', async (t) => {
  const { url, busy } = await serve(t, { running: 1, waiting: 2 });
  const client = new AbortController();
  const first = await fetch(`${url}/images?steps=100`);
  const second = await fetch(`${url}/images?steps=2`, { signal: client.signal });
  const third = await fetch(`${url}/images?steps=2&label=1`);
  t.same(await busy(), { running: 1, waiting: 2 });
  const refused = await Promise.all(Array.from({ length: 20 }, () => fetch(`${url}/images?steps=2`)));
  t.same(new Set(refused.map(({ status }) => status)), new Set([503]));
  t.equal(refused[0].headers.get('retry-after'), '1');
  t.match(await refused[0].json(), { error: /^3 images are being drawn or waited for/ });

  client.abort();
  await t.rejects(allEvents(second));
  await until(t, 'the one that left is out of the queue', async () => (await busy()).waiting === 1);
  const [one, three] = await Promise.all([allEvents(first), allEvents(third)]);
  t.equal(one.at(-1)?.event, 'image');
  t.same([three[0].ahead, three.at(-1)?.event], [2, 'image']);
  t.same(await busy(), { running: 0, waiting: 0 });
});

t.test('a drawing that takes too long', async (t) => {
  const { url, busy } = await serve(t, { seconds: 0.3 });
  t.match((await allEvents(await fetch(`${url}/images?steps=100`))).at(-1), {
    event: 'failed',
    error: 'The drawing took too long.',
  });
  const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"steps": 100}' };
  t.equal((await fetch(`${url}/images`, post)).status, 503);
  t.same(await busy(), { running: 0, waiting: 0 });
});

t.test('closed at work: what is drawn is finished, what waits is told', async (t) => {
  const { url, artist, close } = await serve(t, { waiting: 1 });
  const first = await fetch(`${url}/images?steps=20`);
  const second = await fetch(`${url}/images?steps=2`);
  const [one, two] = await Promise.all([allEvents(first), allEvents(second), close()]);
  t.equal(one.at(-1)?.event, 'image');
  t.same(two.slice(1), [{ event: 'failed', error: 'The server is shutting down.' }]);
  t.ok(artist.model.parameters()[0].isDisposed, 'the model is freed');
  await t.rejects(fetch(`${url}/model`));
});

t.test('a drawing that outlasts the grace is stopped', async (t) => {
  const { url, close } = await serve(t, { grace: 0.2 });
  const response = await fetch(`${url}/images?steps=100`);
  const [found] = await Promise.all([allEvents(response), close()]);
  t.match(found.at(-1), { event: 'failed', error: 'The server has stopped.' });
});

t.test('in a process of its own, used in a browser, stopped by SIGTERM', async (t) => {
  const child = startExample('image-endpoint/server.ts', ['--port', '0']);
  t.teardown(() => child.kill('SIGKILL'));
  const [line] = await once(child.stdout as NodeJS.ReadableStream, 'data');
  const [, url] = /Drawing at (\S+)/.exec(String(line)) as RegExpExecArray;
  const browser = await openBrowser(t);
  if (browser) {
    const page = await browser.newPage({ viewport: { width: 760, height: 640 } });
    const problems: string[] = [];
    page.on('pageerror', (error) => problems.push(error.message));
    await page.goto(url);
    await page.selectOption('[name=label]', '5');
    await page.fill('[name=steps]', '6');
    await page.click('button[type=submit]');
    await page.waitForFunction("document.querySelector('[role=status]').textContent === 'done in 6 steps'");
    t.equal(await page.locator('#steps img').count(), 6);
    t.match(await page.getAttribute('#now', 'src'), /^data:image\/png;base64,/);
    if (process.env.DIFFIT_SCREENSHOT) await page.screenshot({ path: process.env.DIFFIT_SCREENSHOT });

    await page.fill('[name=steps]', '0');
    await page.click('button[type=submit]');
    await page.waitForFunction("document.querySelector('[role=status]').textContent.startsWith('Options: steps')");
    await page.fill('[name=steps]', '100');
    await page.click('button[type=submit]');
    await page.waitForSelector('#steps img');
    await page.click('#stop');
    await page.waitForFunction("document.querySelector('[role=status]').textContent === 'stopped'");
    t.same(problems, []);
    await browser.close();
  }
  child.kill('SIGTERM');
  const [code] = await once(child, 'close');
  t.equal(code, 0);
});
