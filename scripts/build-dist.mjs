/**
 * `npm run build:ts`: lib/ to dist/. The JavaScript is three entry points and the chunks they share (esbuild), since Node takes most of an
 * import's time to find and link files, not to run them: 83 ms for a hundred modules, 35 for these (docs/benchmarks.md). What lib/ imports
 * lazily stays a chunk of its own. The types are tsc's, a file for each module.
 */
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
rmSync(new URL('../dist', import.meta.url), { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: ['lib/index.ts', 'lib/cli/main.ts', 'lib/cli/quickstart.ts'],
  outdir: 'dist',
  outbase: 'lib',
  chunkNames: 'chunks/[name]-[hash]',
  bundle: true,
  splitting: true,
  packages: 'external',
  format: 'esm',
  platform: 'node',
  target: 'node20.19',
  keepNames: true, // errors go by the names of their classes
  logLevel: 'warning',
});
const tsc = fileURLToPath(new URL('../node_modules/typescript/bin/tsc', import.meta.url));
const { status } = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], { cwd: root, stdio: 'inherit' });
process.exitCode = status ?? 1;
