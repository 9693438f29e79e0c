/**
 * Every package that `npm install diffit` brings along must have a licence of this list (SPDX ids); prints each licence with its packages.
 * Reads package-lock.json, which names the packages of all platforms, not only of this one.
 *
 *     npm run check:licenses
 */
import { readFileSync } from 'node:fs';

const allowed = new Set(['Apache-2.0', 'MIT', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', '0BSD', 'BlueOak-1.0.0']);
/** libvips, which sharp loads as a library of its own that can be exchanged. */
const exceptions: [packages: RegExp, license: RegExp][] = [[/^@img\/sharp-/, /\bLGPL-3\.0-or-later\b/]];

interface Locked {
  dev?: boolean;
  link?: boolean;
  license?: string;
}

/** "A OR B" needs one allowed part, "A AND B" all. */
function isAllowed(expression: string): boolean {
  return expression
    .replace(/[()]/g, '')
    .split(' OR ')
    .some((choice) => choice.split(' AND ').every((id) => allowed.has(id.trim())));
}

const { packages } = JSON.parse(readFileSync(new URL('../package-lock.json', import.meta.url), 'utf8')) as {
  packages: Record<string, Locked>;
};
const byLicense = new Map<string, string[]>();
const wrong: string[] = [];
for (const [place, { dev, link, license = 'none' }] of Object.entries(packages)) {
  if (dev || !place.startsWith('node_modules/') || link) continue; // the package itself, and the examples, which are not packed
  const name = place.replace(/^.*node_modules\//, '');
  byLicense.set(license, [...(byLicense.get(license) ?? []), name]);
  const excepted = exceptions.some(([names, licenses]) => names.test(name) && licenses.test(license));
  if (!isAllowed(license) && !excepted) wrong.push(`${name}: ${license}`);
}
for (const [license, names] of byLicense) console.log(`${license}: ${names.sort().join(', ')}`);
if (byLicense.size === 0 || wrong.length > 0) {
  console.error(
    `Licences that are not allowed (scripts/check-licenses.ts): ${wrong.join('; ') || 'no packages were found'}`,
  );
  process.exit(1);
}
