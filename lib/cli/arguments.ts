/** Values of command-line options: numbers in range, lists of labels. */
import { InvalidArgumentError } from 'commander';

/** An integer of at least `least`. */
export function integer(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`Expected an integer of at least ${least}.`);
    }
    return value;
  };
}

/** A finite number of at least 0. */
export function nonNegative(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) {
    throw new InvalidArgumentError('Expected a number of at least 0.');
  }
  return value;
}

/** Most labels a list may name. */
const maxLabels = 100_000;

/** "0-9", "0,1,2", "207,360-362", "otter, golden retriever": numbers and names, in order. */
export function classList(text: string): (number | string)[] {
  const labels = text.split(',').flatMap((part): (number | string)[] => {
    const name = part.trim();
    if (/^[a-z]/i.test(name)) return [name];
    const match = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(name);
    const [first, last] = match ? [Number(match[1]), Number(match[2] ?? match[1])] : [0, -1];
    if (last < first || last - first >= maxLabels) {
      throw new InvalidArgumentError('Expected class numbers, ranges and names, as in 0-9 or 1,3,5.');
    }
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
  if (labels.length > maxLabels) throw new InvalidArgumentError(`Expected at most ${maxLabels} labels.`);
  return labels;
}
