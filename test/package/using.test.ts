/** `using` on what owns something, as a user's compiler sees it: strict, with the types of Node and lib es2022 alone, both resolutions. */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const root = fileURLToPath(new URL('../..', import.meta.url));
const program = `
import { data, io, models, nn, optim, train, zeros } from 'diffit';
export async function owners(options: train.TrainingRunOptions): Promise<void> {
  using x = zeros([1, 1, 32, 32]);
  using model = models.create('mnist');
  using adam = new optim.Adam(model.namedParameters());
  using subset = nn.TokenSubset.random(1, 4, 0.5);
  using set = await data.openImageFolder('images');
  using loader = new data.DataLoader(set, { batchSize: 1 });
  using weights = await io.loadSafetensors('model.safetensors');
  using batch = await io.openImageNpz('images.npz');
  using loaded = await train.loadModel('model.safetensors');
  using trainer = new train.Trainer({ model, average: model, optimizer: adam, objective: train.edmObjective(), loader });
  await using run = await train.TrainingRun.open(options);
  console.log(x, subset, weights, batch, loaded, trainer, run);
}
`;
/** Each owns nothing, or is misspelt: the compiler must say so, or it sees no types at all. */
const wrong = `
import { optim, zeros } from 'diffit';
using rate = optim.constantLr(1);
zeros(['1']);
new optim.Adam([zeros([1])], { beta: 1 });
`;

t.before(() => {
  // As a user's compiler, it reads dist.
  if (!existsSync(join(root, 'dist/index.d.ts'))) throw new Error('npm run build:ts first');
});

for (const [module, moduleResolution] of [
  ['nodenext', 'nodenext'],
  ['esnext', 'bundler'],
]) {
  t.test(`strict, ${moduleResolution}`, (t) => {
    const dir = t.testdir();
    mkdirSync(join(dir, 'node_modules/@types'), { recursive: true });
    symlinkSync(root, join(dir, 'node_modules/diffit'), 'dir');
    symlinkSync(join(root, 'node_modules/@types/node'), join(dir, 'node_modules/@types/node'), 'dir');
    const compilerOptions = {
      strict: true,
      target: 'es2022',
      lib: ['es2022'],
      module,
      moduleResolution,
      types: ['node'],
      noEmit: true,
    };
    writeFileSync(join(dir, 'package.json'), '{ "type": "module" }');
    writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['main.ts', 'wrong.ts'] }));
    writeFileSync(join(dir, 'main.ts'), program);
    writeFileSync(join(dir, 'wrong.ts'), wrong);
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    const { stdout } = spawnSync(process.execPath, [tsc, '-p', dir], { cwd: dir, encoding: 'utf8' });
    t.same(
      [...stdout.matchAll(/^(\S+?)\(\d+,|^error.*/gm)].map(([text]) => text.replace(/,$/, ')').slice(0, 40)),
      ['wrong.ts(3)', 'wrong.ts(4)', 'wrong.ts(5)'],
      stdout,
    );
    t.end();
  });
}

t.test('without the types of Node, and with a lib that knows no Disposable', (t) => {
  const dir = t.testdir();
  // A copy: from a link the compiler would find Node's types beside this package.
  cpSync(join(root, 'dist'), join(dir, 'node_modules/diffit/dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(dir, 'node_modules/diffit/package.json'));
  const compilerOptions = {
    strict: true,
    target: 'es2022',
    lib: ['es2022', 'dom'],
    module: 'nodenext',
    types: [],
    noEmit: true,
    skipLibCheck: false,
  };
  writeFileSync(join(dir, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['main.ts'] }));
  writeFileSync(join(dir, 'main.ts'), program);
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const { stdout, status } = spawnSync(process.execPath, [tsc, '-p', dir], { cwd: dir, encoding: 'utf8' });
  t.equal(status, 0, stdout);
  t.end();
});
