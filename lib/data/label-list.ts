/**
 * dataset.json, the label list of EDM's dataset_tool: {"labels": [["00000/img00000000.png", 6], …]} or {"labels": null}. A list of ours also has
 * "classNames", which other readers pass over.
 */
import { DataError, FileFormatError } from '../errors.js';
import { quote } from '../io/files.js';
import type { EncodedSource, LabelledSource } from './encoded.js';

/** Its name, beside the images. */
export const labelsFile = 'dataset.json';
/** Longer lists are refused. */
export const maxLabelsBytes = 512 << 20;
/** A label list of integers up to this; the number of classes sizes a table in the model. */
const maxLabel = 1_000_000;

/** A list that was read; `byName` is absent for {"labels": null}. */
export interface LabelList {
  byName?: Map<string, number>;
  classNames?: readonly string[];
}

/** `where` names the list in messages. Throws FileFormatError. */
export function parseLabels(bytes: Uint8Array, where: string, path = where): LabelList {
  const fail = (message: string, cause?: unknown): never => {
    throw new FileFormatError(`${where} ${message}`, { path, cause });
  };
  let root: unknown;
  try {
    root = JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    fail('is not valid JSON.', cause);
  }
  const { labels = null, classNames } = (root ?? {}) as { labels?: unknown; classNames?: unknown };
  if (labels === null) return {};
  if (!Array.isArray(labels)) return fail('needs "labels": a list of [name, label], or null.');
  const byName = new Map<string, number>();
  for (const [i, entry] of labels.entries()) {
    const [name, label] = Array.isArray(entry) ? entry : [];
    if (typeof name !== 'string' || !Number.isInteger(label) || label < 0 || label > maxLabel) {
      fail(`has the label entry ${i} ${quote(JSON.stringify(entry))}; expected [name, integer of 0 .. ${maxLabel}].`);
    }
    byName.set(name.replaceAll('\\', '/'), label);
  }
  if (classNames === undefined) return { byName };
  if (!Array.isArray(classNames) || !classNames.every((name) => typeof name === 'string'))
    return fail('has "classNames" that are no list of names.');
  return { byName, classNames };
}

/** Images with the labels of a list. Throws DataError when an image has none. */
export function labelledBy(
  { byName, classNames }: LabelList,
  names: readonly string[],
  source: Omit<EncodedSource, 'label'>,
  where: string,
): LabelledSource {
  if (!byName) return { source: { ...source, label: () => 0 }, classes: { count: 0 } };
  const labels = names.map((name) => {
    const label = byName.get(name);
    if (label === undefined) throw new DataError(`${where} has no label for ${quote(name)}.`);
    return label;
  });
  const least = labels.reduce((most, label) => Math.max(most, label), 0) + 1;
  if (classNames && classNames.length < least)
    throw new DataError(`${where} names ${classNames.length} classes and has labels up to ${least - 1}.`);
  const classes = { count: classNames?.length ?? least, ...(classNames && { names: classNames }) };
  return { source: { ...source, label: (index) => labels[index] }, classes };
}

/** The bytes of a list. */
export function encodeLabels(
  entries: Iterable<readonly [string, number]> | null,
  classNames?: readonly string[],
): Uint8Array {
  const labels = entries && [...entries];
  return Buffer.from(`${JSON.stringify({ labels, ...(labels && classNames && { classNames }) })}\n`);
}
