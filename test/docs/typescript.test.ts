/**
 * The ts blocks of every page: those of one page are one program, checked as strictly as the sources and then run against them, in a folder
 * of stand-ins. What a block says a line prints (`console.log(x); // -> 4`) is compared with what it prints.
 */
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import ts from 'typescript';
import { type Block, blocksIn, blocksOf, pages, root } from './markdown.js';
import { workplace } from './stand-ins.js';

interface Program {
  page: string;
  source: string;
  path: string;
}

/** Blocks of a page as one module: imports first, each name once, then the code with the page's own line numbers in comments. */
function moduleOf(blocks: readonly Block[], library: string): string {
  const imports = new Map<string, Set<string>>();
  const bodies = blocks.map(({ page, line, code }) => {
    const body = code.replace(/^import \{([^}]*)\} from '([^']+)';\n?/gm, (_, names: string, from: string) => {
      const known = imports.get(from) ?? new Set();
      imports.set(from, known);
      for (const name of names.split(',')) if (name.trim() !== '') known.add(name.trim());
      return '';
    });
    return `// ${page}:${line}\n${body}`;
  });
  const heads = [...imports].map(([from, names]) => {
    const specifier = from === 'diffit' ? library : from;
    return `import { ${[...names].join(', ')} } from '${specifier}';`;
  });
  return [...heads, ...bodies, 'export {};'].join('\n');
}

/** `console.log(x); // -> 4` becomes a comparison. */
function checked(source: string): string {
  const rewritten = source.replace(
    /console\.log\((.*)\); \/\/ -> (.*)$/gm,
    (_, values: string, text: string) => `prints(${JSON.stringify(text)}, ${values});`,
  );
  return `import { format } from 'node:util';
const prints = (text: string, ...values: unknown[]): void => {
  const found = format(...values);
  if (found !== text) throw new Error(\`prints \${found}, the page says \${text}\`);
};
${rewritten}`;
}

/** Everything the compiler has to say about the files, as sentences. */
function complaints(paths: readonly string[]): string[] {
  const configPath = join(root, 'tsconfig.json');
  const { options } = ts.parseJsonConfigFileContent(
    ts.readConfigFile(configPath, ts.sys.readFile).config,
    ts.sys,
    root,
  );
  // A page may show a value that nothing uses.
  const program = ts.createProgram([...paths], { ...options, noUnusedLocals: false, allowImportingTsExtensions: true });
  return ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
    const text = ts.flattenDiagnosticMessageText(messageText, '\n');
    if (!file || start === undefined) return text;
    const { line } = file.getLineAndCharacterOfPosition(start);
    return `${relative(root, file.fileName)}:${line + 1}: ${text}\n  ${file.text.split('\n')[line].trim()}`;
  });
}

/** A folder inside the clone, where imports are found. */
function scratch(t: Test): string {
  mkdirSync(join(root, 'build'), { recursive: true });
  const folder = mkdtempSync(join(root, 'build', 'docs-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  return folder;
}

function write(folder: string, page: string, blocks: readonly Block[]): Program {
  const path = join(folder, `${page.replace(/\W/g, '-')}.mts`);
  const source = moduleOf(blocks, '../../lib/index.js');
  writeFileSync(path, source);
  return { page, source, path };
}

async function execute(t: Test, { path, source }: Program): Promise<{ code: number; output: string }> {
  const script = path.replace(/\.mts$/, '.run.mts');
  writeFileSync(script, checked(source));
  const tsx = import.meta.resolve('tsx');
  const options = { cwd: await workplace(t), timeout: 120_000, env: { ...process.env, NO_COLOR: '1' } };
  return promisify(execFile)(process.execPath, ['--import', tsx, script], options).then(
    ({ stdout }) => ({ code: 0, output: stdout }),
    ({ code, stdout, stderr }) => ({ code, output: `${stdout}${stderr}` }),
  );
}

const blocks = pages.flatMap(blocksOf).filter(({ language }) => language === 'ts');

t.test('blocks that are not run say why', async (t) => {
  for (const { page, line, notRun } of blocks.filter(({ notRun }) => notRun)) t.comment(`${page}:${line}: ${notRun}`);
  t.ok(blocks.length >= 15, `${blocks.length} blocks`);
});

t.test('they have the right types', async (t) => {
  const folder = scratch(t);
  const byPage = pages.map((page) => [page, blocks.filter((block) => block.page === page && !block.notRun)] as const);
  const programs = byPage.filter(([, own]) => own.length > 0).map(([page, own]) => write(folder, page, own));
  t.same(complaints(programs.map(({ path }) => path)), []);
  for (const program of programs) {
    await t.test(`${program.page} runs`, { timeout: 180_000 }, async (t) => {
      const { code, output } = await execute(t, program);
      t.equal(code, 0, output);
    });
  }
});

t.test('the test can fail', async (t) => {
  const folder = scratch(t);
  const program = (code: string): Program =>
    write(folder, `bad-${code.length}`, blocksIn('x.md', `\`\`\`ts\n${code}\n\`\`\`\n`));
  const wrongType = program("import { randn } from 'diffit';\nrandn('two');");
  const wrongValue = program('console.log(1 + 1); // -> 3');
  const rightValue = program('console.log("a", [1, 2]); // -> a [ 1, 2 ]');
  const throws = program("import { zeros } from 'diffit';\nzeros([2]).reshape([3]);");
  t.match(complaints([wrongType.path]), [/'string' is not assignable/]);
  t.match(await execute(t, wrongValue), { code: 1, output: /prints 2, the page says 3/ });
  t.match(await execute(t, throws), { code: 1, output: /ShapeError/ });
  t.match(await execute(t, rightValue), { code: 0 });
});
