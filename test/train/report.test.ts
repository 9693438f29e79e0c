/** Training reports: what is read from a run's folder, how long logs are thinned, and the page as text. */
import {
  appendFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import { saveCheckpoint } from '../../lib/train/checkpoint.js';
import {
  checkpointPath,
  describeModel,
  planTraining,
  readRecord,
  saveModel,
  TrainingRun,
  writeReport,
} from '../../lib/train/index.js';
import { History } from '../../lib/train/report/history.js';
import { html, jsonScript } from '../../lib/train/report/html.js';
import { brokenStretches } from '../../lib/train/report/marks.js';
import { bytesOf, durationOf, linearTicks, logTicks, shortNumber } from '../../lib/train/report/numbers.js';
import { readRunFacts } from '../../lib/train/report/run-facts.js';
import { smoothAt, sumsOf, thin } from '../../lib/train/report/thin.js';
import { ReportKeeper } from '../../lib/train/report/write.js';
import { temporaryFolder, tinyConfig, tinyTrainer } from './fixtures.js';
import { makeRun, record, step } from './report-fixtures.js';

const steps = (count: number, from = 1): Record<string, unknown>[] =>
  Array.from({ length: count }, (_, i) => step(from + i));

t.test('thinning keeps every spike, at its step', async (t) => {
  const random = new HostRandom(3);
  const [count, spike, dip] = [100_000, 61_803, 27_182];
  const at = Array.from({ length: count }, (_, i) => i + 1);
  const values = at.map(() => 1 + random.integer(1000) / 1000);
  values[spike - 1] = 50;
  values[dip - 1] = -50;
  const buckets = thin(at, values, 500);
  t.equal(buckets.length, 500);
  t.match(
    buckets.find(({ high }) => high === 50),
    { highAt: spike },
  );
  t.match(
    buckets.find(({ low }) => low === -50),
    { lowAt: dip },
  );
  const wrong = buckets.filter(({ first, last, low, high, mean }) => {
    const part = values.slice(first - 1, last);
    const exact = part.reduce((sum, value) => sum + value, 0) / part.length;
    return low !== Math.min(...part) || high !== Math.max(...part) || Math.abs(mean - exact) > 1e-9;
  });
  t.same(wrong, []);
  t.same([buckets[0].first, buckets[499].last], [1, count]);
  t.same([buckets[0].index, buckets[499].index], [0, count - 1], 'curves reach both ends');
  t.equal(thin(at.slice(0, 400), values.slice(0, 400), 500).length, 400, 'a short series stays as it is');
  t.same(thin([], [], 500), []);
});

t.test('values that are not finite', async (t) => {
  const [bad, none] = [Number.POSITIVE_INFINITY, Number.NaN];
  const [both, nothing] = thin([1, 2, 3, 4], [none, 5, bad, bad], 2);
  t.match(both, { low: 5, high: 5, mean: 5, broken: 0 });
  t.match(nothing, { broken: 2 });
  t.ok(Number.isNaN(nothing.low) && Number.isNaN(nothing.mean));
  t.same(brokenStretches([1, 2, 3, 4, 5, 6, 7], [bad, 1, bad, bad, none, bad, 1]), [
    { first: 1, last: 1, count: 1 },
    { first: 3, last: 4, count: 2 },
    { first: 6, last: 6, count: 1 },
  ]);
  const sums = sumsOf([1, bad, 3, none]);
  t.equal(smoothAt(sums, 1, 3), 2, 'a mean of those that are');
  t.ok(Number.isNaN(smoothAt(sumsOf([bad]), 0, 3)));
});

t.test('smoothing is the mean of a window, which starts narrow and is cut at the end', async (t) => {
  const values = [8, 4, 6, 2, 1, 7];
  const sums = sumsOf(values);
  const mean = (...list: number[]): number => list.reduce((sum, value) => sum + value, 0) / list.length;
  t.same(
    values.map((_, i) => smoothAt(sums, i, 5)),
    [8, mean(8, 4, 6), mean(8, 4, 6, 2, 1), mean(4, 6, 2, 1, 7), mean(6, 2, 1, 7), mean(2, 1, 7)],
  );
});

t.test(
  'a resumed log joins: steps that were done again take the place of the old ones and of what followed them',
  async (t) => {
    const path = join(temporaryFolder(t), 'log.jsonl');
    const lines = [...steps(6), step(4, { loss: 40 }), step(5, { loss: 50 }), step(5, { loss: 51 })];
    writeFileSync(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const history = new History(path);
    await history.refresh();
    t.same(history.steps, [1, 2, 3, 4, 5]);
    t.same(history.columns.loss.slice(3), [40, 51]);
    t.same(history.images, [32, 64, 96, 128, 160]);
    t.same(history.resumes, [3, 4]);
    appendFileSync(path, `${JSON.stringify(step(2, { loss: 20 }))}\n`);
    await history.refresh();
    t.same([history.steps, history.resumes], [[1, 2], [1]]);
  },
);

t.test('a log is read on while it grows, whatever state its end is in', async (t) => {
  const path = join(temporaryFolder(t), 'log.jsonl');
  const history = new History(path);
  await history.refresh();
  t.equal(history.length, 0, 'no log yet');
  writeFileSync(path, '{"step":1,"loss":1}\n{"step":2,"lo');
  await history.refresh();
  t.same(history.columns.loss, [1], 'the line that is being written waits');
  appendFileSync(
    path,
    'ss":2}\n{"step":3,"loss":null}\n{"step":4,"loss":NaN,"lr":-Infinity}\nnoise\n[]\n{"loss":1}\n\n',
  );
  await history.refresh();
  const bad = Number.POSITIVE_INFINITY;
  t.same(history.columns.loss, [1, 2, bad, bad]);
  t.ok(Number.isNaN(history.columns.lr[2]), 'not logged is not the same as not finite');
  t.equal(history.columns.lr[3], bad);
  t.equal(history.unreadable, 3);
  writeFileSync(path, '{"step":1,"loss":9}\n');
  await history.refresh();
  t.same([history.steps, history.columns.loss, history.unreadable], [[1], [9], 0], 'a new run in its place');

  const long = `${steps(40_000)
    .map((line) => JSON.stringify(line))
    .join('\n')}\n`; // several pieces, borders within lines
  writeFileSync(path, long);
  const whole = new History(path);
  await whole.refresh();
  t.same([whole.length, whole.unreadable, whole.steps[39_999]], [40_000, 0, 40_000]);
});

t.test('text in a page is escaped, in elements, attributes and scripts', async (t) => {
  const name = `</script><b a='1'>"&`;
  t.equal(
    html`<p title="${name}">${name}${[1, html`<i>${2}</i>`]}${undefined}${false}</p>`.markup,
    '<p title="&lt;/script&gt;&lt;b a=&#39;1&#39;&gt;&quot;&amp;">&lt;/script&gt;&lt;b a=&#39;1&#39;&gt;&quot;&amp;1<i>2</i></p>',
  );
  const script = jsonScript('x', { name }).markup;
  t.equal(script.match(/</g)?.length, 2, 'only the element itself');
  t.same(JSON.parse(script.replace(/^<[^>]*>|<\/script>$/g, '')), { name });

  const folder = join(temporaryFolder(t), `<img src=x onerror=alert(1)> & "run"`);
  await makeRun(folder, {
    record: record({ status: 'failed', error: '<u>"why"</u>', data: '<s>', config: { training: { '<k>': '<v>' } } }),
    log: steps(3),
  });
  const { path } = await writeReport(folder);
  const page = readFileSync(path, 'utf8');
  for (const raw of ['<img src=x', '<u>', '<s>', '<k>', '<v>']) t.notOk(page.includes(raw), raw);
  t.match(page, '<h1>&lt;img src=x onerror=alert(1)&gt; &amp; &quot;run&quot;</h1>');
});

t.test('numbers and ticks', async (t) => {
  t.same([0, 0.15321, 12345.6, 5e-5, 0.0005, Number.NaN, 3e8].map(shortNumber), [
    '0',
    '0.1532',
    '12,346',
    '5e-5',
    '0.0005',
    '–',
    '3e8',
  ]);
  t.same([0, 3 * 2 ** 20, 1.5 * 2 ** 30].map(bytesOf), ['0', '3 MiB', '1.5 GiB']);
  t.same([9, 75, 3660, 200_000].map(durationOf), ['9 s', '1 min 15 s', '1 h 01 min', '2 d 7 h']);
  t.same(linearTicks(0, 90), [0, 20, 40, 60, 80]);
  t.same(linearTicks(3, 3), [3]);
  t.same(logTicks(0.09, 3), [0.1, 0.2, 0.5, 1, 2]);
  t.same(logTicks(1e-9, 1), [1e-8, 1e-6, 1e-4, 1e-2, 1]);
  for (const [low, high] of [
    [0.3, 0.31],
    [1e-30, 1e30],
    [7, 7.0001],
    [0.5, 40],
  ]) {
    const ticks = logTicks(low, high);
    t.ok(
      ticks.length >= 2 && ticks.length <= 9 && ticks.every((tick) => tick >= low && tick <= high),
      `${low} to ${high}: ${ticks}`,
    );
  }
});

t.test('how a run stands', async (t) => {
  const folder = temporaryFolder(t);
  const standing = async (changes: Parameters<typeof record>[0]) => {
    await makeRun(folder, { record: record(changes), log: steps(20) });
    return readRunFacts(folder);
  };
  t.match(await standing({}), { status: 'finished', step: 20, steps: 200, elapsed: 3900, resumes: [] });
  const process = { pid: 2 ** 30, host: record().process.host };
  const started = [{ started: new Date(Date.now() - 100_000).toISOString(), after: 0 }];
  t.match(await standing({ status: 'running', sessions: started }), { status: 'running' }, 'this process is alive');
  t.match(
    await standing({ status: 'running', process, sessions: started }),
    { status: 'interrupted' },
    'no such process',
  );
  t.match(
    await standing({ status: 'running', process: { ...process, host: 'elsewhere' } }),
    { status: 'running' },
    'a fresh log',
  );
  t.match(await standing({ status: 'failed', error: 'Why.' }), { status: 'failed', error: 'Why.' });
  const twice = [
    ...record().sessions,
    { started: '2026-01-02T10:00:00.000Z', ended: '2026-01-02T10:00:30.000Z', after: 15 },
  ];
  t.match(await standing({ sessions: twice }), { elapsed: 3930, resumes: [15] });
});

t.test('runs from before there were records: settings from the checkpoint', async (t) => {
  const folder = temporaryFolder(t);
  await makeRun(folder, { log: steps(10), samples: [5] });
  const facts = await readRunFacts(folder);
  t.match(facts, { status: 'running', step: 10, config: {} });
  t.ok(Math.abs(facts.elapsed - 4) < 1e-9, 'of 320 images at 80 a second');
  const trainer = tinyTrainer();
  await trainer.run(1);
  const config = { training: { lr: 0.25 }, model: describeModel(trainer.model) };
  await saveCheckpoint(checkpointPath(folder, 1), trainer, config);
  t.match(await readRunFacts(folder), { status: 'running', config: { training: { lr: 0.25 } }, seed: 5 });
  rmSync(checkpointPath(folder, 1));
  await saveModel(join(folder, 'model.safetensors'), trainer.average);
  t.match(await readRunFacts(folder), { status: 'finished', config: { model: { kind: 'ImageDiffiT' } } });
  const { path, runs } = await writeReport(folder);
  t.match(runs, [{ folder, step: 10, status: 'finished' }]);
  t.match(readFileSync(path, 'utf8'), /id="chart-loss"/);
  const silent = new Date(Date.now() - 3_600_000);
  rmSync(join(folder, 'model.safetensors'));
  utimesSync(join(folder, 'log.jsonl'), silent, silent);
  t.match(await readRunFacts(folder), { status: 'interrupted' });
});

t.test('the page of a long log, with its spike, is quick and small', async (t) => {
  const folder = temporaryFolder(t);
  await makeRun(folder, {
    record: record(),
    log: steps(100_000).map((line) => (line.step === 77_777 ? step(77_777, { loss: 1234, gradNorm: 5 }) : line)),
  });
  const started = performance.now();
  const { path, bytes } = await writeReport(folder);
  t.ok(performance.now() - started < 2000, `${(performance.now() - started).toFixed(0)} ms`);
  t.equal(bytes, statSync(path).size);
  t.ok(bytes < 700_000, `${bytes} bytes`);
  t.match(readFileSync(path, 'utf8'), /1234/);
  const markup = readFileSync(path, 'utf8').replace(/<script>.*<\/script>/s, '');
  t.same(markup.match(/NaN|Infinity|undefined/g), null);
});

t.test('sample grids are spread over the run and kept small', async (t) => {
  const folder = temporaryFolder(t);
  await makeRun(folder, {
    record: record(),
    log: steps(190),
    samples: Array.from({ length: 60 }, (_, i) => 5 * (i + 1)),
  });
  const random = new HostRandom(9);
  const [width, height] = [900, 700];
  const data = Uint8Array.from({ length: width * height * 3 }, () => random.integer(256));
  await saveImage(join(folder, 'samples', '0000190.png'), { data, width, height, channels: 3 }); // 1.9 MB of noise
  writeFileSync(join(folder, 'samples', '0000005.png'), 'no image');
  writeFileSync(join(folder, 'samples', 'notes.txt'), '');
  const { path, bytes } = await writeReport(folder);
  const page = readFileSync(path, 'utf8');
  const shown = [...page.matchAll(/data-step="(\d+)"><img src="data:image\/(\w+);/g)];
  const numbers = shown.map(([, step]) => Number(step));
  t.equal(numbers.length, 23, 'at most 24, one of them damaged');
  t.equal(numbers[22], 190, 'the last, and none of steps that were undone');
  t.same(
    shown.map(([, , type]) => type).filter((type) => type !== 'png'),
    ['webp'],
    'only the large one is made smaller',
  );
  t.match(page, 'Sample grids of');
  t.match(page, 'no intact images: 0000005.png');
  t.ok(bytes < 1_000_000, `${bytes} bytes`);
});

t.test('comparing: names that tell runs apart, differences marked, one run twice is one', async (t) => {
  const folder = temporaryFolder(t);
  const [a, b] = [join(folder, 'a', 'run'), join(folder, 'b', 'run')];
  await makeRun(a, { record: record(), log: steps(50) });
  const { training, ...config } = record().config;
  await makeRun(b, {
    record: record({ config: { ...config, training: { ...(training as object), lr: 0.5, flip: true } } }),
    log: steps(20),
  });
  const out = join(folder, 'both.html');
  const { runs } = await writeReport([a, b, `${a}/`], { out });
  t.match(runs, [
    { folder: a, step: 50 },
    { folder: b, step: 20 },
  ]);
  const page = readFileSync(out, 'utf8');
  t.match(page, /a\/run<\/label>.*b\/run<\/label>/s);
  const differing = [...page.matchAll(/<tr class="differs"><th scope="row">(\w+)<\/th>(.*?)<\/tr>/g)].map(
    ([, name, cells]) => [
      name,
      cells
        .replace(/<[^>]*>/g, ' ')
        .trim()
        .split(/ +/),
    ],
  );
  t.same(differing, [
    ['lr', ['0.001', '0.5']],
    ['flip', ['–', 'true']],
  ]);
});

t.test('what a report is not made of', async (t) => {
  const folder = temporaryFolder(t);
  await t.rejects(writeReport([]), { name: 'OptionError', message: /at least one run/ });
  await t.rejects(writeReport(join(folder, 'none')), {
    name: 'FileError',
    message: /none cannot be read: there is no such file or folder\./,
  });
  const file = join(folder, 'file');
  writeFileSync(file, '');
  await t.rejects(writeReport(file), { name: 'FileError', message: /is a file, not the folder of a training run/ });
  await t.rejects(writeReport(folder), {
    name: 'TrainError',
    message: /is not the folder of a training run: there is no log\.jsonl in it\./,
  });
  writeFileSync(join(folder, 'log.jsonl'), 'hello\n');
  await t.rejects(writeReport(folder), { name: 'TrainError', message: /there is no step in its log\.jsonl/ });
  writeFileSync(join(folder, 'run.json'), '{}');
  await t.rejects(writeReport(folder), {
    name: 'FileFormatError',
    message: /run\.json is no record of a training run/,
  });
  const run = await makeRun(join(folder, 'run'), { record: record(), log: steps(2) });
  await t.rejects(writeReport(run, { out: join(file, 'x.html') }), { name: 'FileError', message: /cannot be written/ });
  t.same(readdirSync(run), ['log.jsonl', 'run.json', 'samples'], 'nothing half-written stays');
});

t.test('a run keeps its own report and record', async (t) => {
  const data = temporaryFolder(t);
  const random = new HostRandom(1);
  for (let i = 0; i < 6; i++) {
    await saveImage(join(data, `${i}.png`), {
      data: Uint8Array.from({ length: 64 }, () => random.integer(256)),
      width: 8,
      height: 8,
      channels: 1,
    });
  }
  const out = join(temporaryFolder(t), 'run');
  const plan = planTraining({
    model: { ...tinyConfig, numClasses: 0 },
    data,
    training: { batch: 4, lr: 1e-3, gradClip: 1 },
    sampler: { steps: 1 },
  });
  const run = await TrainingRun.open({ plan, out, seed: 3, report: true, sampleEvery: 2 });
  t.match(await readRecord(out), {
    status: 'running',
    seed: 3,
    data,
    device: 'cpu',
    parameters: run.trainer.model.parameterCount(),
  });
  const written: string[] = [];
  let early = false;
  await run.train(4, {
    onStep: ({ step }) => {
      early ||= step > 1 && existsSync(join(out, 'report.html'));
    },
    onFile: (path) => written.push(path),
  });
  t.ok(early, 'a page was there before the end');
  t.equal(written[written.length - 1], join(out, 'report.html'));
  t.match(await run.finish(), { report: join(out, 'report.html') });
  await run.close();
  const page = readFileSync(join(out, 'report.html'), 'utf8');
  for (const part of [
    '>Finished<',
    'id="chart-gradNorm"',
    'id="chart-memoryBytes"',
    'data-step="4"',
    `<td class="run run-0">${data}</td>`,
  ])
    t.ok(page.includes(part), part);
  t.match(await readRecord(out), { status: 'finished', steps: 4, sessions: [{ after: 0, ended: String }] });

  const more = await TrainingRun.open({ plan, out, seed: 3, report: true, resume: true });
  const controller = new AbortController();
  await more.train(100, { signal: controller.signal, onStep: () => controller.abort() });
  await more.close();
  t.match(await readRecord(out), {
    status: 'interrupted',
    steps: 100,
    sessions: [{ after: 0 }, { after: 4, ended: String }],
  });
  t.match(readFileSync(join(out, 'report.html'), 'utf8'), />Interrupted<.*Resumed after step 4/s);

  const wild = planTraining({
    ...plan,
    model: { ...tinyConfig, numClasses: 0 },
    preset: undefined,
    training: { ...plan.training, lr: 1e30 },
  } as never);
  const failing = await TrainingRun.open({ plan: wild, out: join(out, 'wild'), report: true });
  await t.rejects(failing.train(50), { name: 'NonFiniteError' });
  await failing.close();
  t.match(await readRecord(join(out, 'wild')), { status: 'failed', error: / at step \d+ / });
  t.match(readFileSync(join(out, 'wild', 'report.html'), 'utf8'), />Failed<.* at step \d+ /s);
});

t.test('while it runs, pages are written at intervals, and their failures wait for the end', async (t) => {
  const folder = temporaryFolder(t);
  await makeRun(folder, { record: record(), log: steps(5) });
  const keeper = new ReportKeeper(folder);
  await keeper.write();
  const before = statSync(keeper.path).mtimeMs;
  keeper.touch();
  await keeper.write(); // also waits for one that is being written
  t.ok(statSync(keeper.path).mtimeMs >= before);
  const missing = new ReportKeeper(join(folder, 'gone'));
  missing.touch();
  await t.rejects(missing.write(), { name: 'FileError' });
});
