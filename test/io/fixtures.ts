/** What the io tests share: the files made by the original libraries (test/reference/make_io_fixtures.py). */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Path of a file in test/fixtures/io. */
export function fixture(name: string): string {
  return fileURLToPath(new URL(`../fixtures/io/${name}`, import.meta.url));
}

/** Numbers as Python printed them. */
export const values: Record<'halves' | 'bfloats' | 'floats' | 'doubles', number[]> = JSON.parse(
  readFileSync(fixture('values.json'), 'utf8'),
  (_, value) => (typeof value === 'string' ? (value === 'inf' ? Number.POSITIVE_INFINITY : Number(value)) : value),
);
