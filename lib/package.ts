/** The package's own folder, wherever the build puts this module: sources are as many files as they are here, dist is few. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The nearest folder above with a package.json. */
export const packageRoot = find(dirname(fileURLToPath(import.meta.url)));

function find(folder: string): string {
  return existsSync(join(folder, 'package.json')) || folder === dirname(folder) ? folder : find(dirname(folder));
}
