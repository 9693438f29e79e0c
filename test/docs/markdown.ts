/** The pages of the documentation, and what the tests read from them: fenced blocks, headings, links. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** README.md and docs/*.md, relative to the root. */
export const pages: readonly string[] = [
  'README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .sort()
    .map((name) => `docs/${name}`),
];

export const readPage = (page: string): string => readFileSync(join(root, page), 'utf8');

/** A fenced block. */
export interface Block {
  page: string;
  /** Of its first line of code, from 1. */
  line: number;
  language: string;
  code: string;
  /** Why it is not run: the text of `<!-- not run: ... -->` on the line before it. */
  notRun?: string;
}

/** What a fence may hold, and which test takes it. */
export const languages = ['ts', 'sh', 'json', 'diff', 'text'] as const;

/** All fenced blocks of a text, in order. Throws on one that never ends. */
export function blocksIn(page: string, text: string): Block[] {
  const blocks: Block[] = [];
  const lines = text.split('\n');
  for (let i = 0; i < lines.length; i++) {
    const opening = /^( *)(`{3,})(\S*)\s*$/.exec(lines[i]);
    if (!opening) continue;
    const [, indent, fence, language] = opening;
    let end = i + 1;
    while (end < lines.length && lines[end].trim() !== fence) end++;
    if (end === lines.length) throw new Error(`${page}:${i + 1}: the block has no end`);
    const code = lines
      .slice(i + 1, end)
      .map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line))
      .join('\n');
    const before = lines
      .slice(0, i)
      .reverse()
      .find((line) => line.trim() !== '');
    const notRun = /^<!-- not run: (.+) -->$/.exec(before?.trim() ?? '')?.[1];
    blocks.push({ page, line: i + 2, language, code, ...(notRun && { notRun }) });
    i = end;
  }
  return blocks;
}

export const blocksOf = (page: string): Block[] => blocksIn(page, readPage(page));

/** The text with fenced blocks and inline code blanked out, line for line. */
export function prose(text: string): string {
  let fence: string | undefined;
  return text
    .split('\n')
    .map((line) => {
      const [, found] = /^ *(`{3,})/.exec(line) ?? [];
      if (fence === undefined && found) fence = found;
      else if (fence !== undefined && line.trim() === fence) fence = undefined;
      else if (fence === undefined) return line.replace(/`[^`]*`/g, (code) => ' '.repeat(code.length));
      return '';
    })
    .join('\n');
}

/** The anchors that GitHub gives the headings of a page. */
export function anchorsOf(text: string): Set<string> {
  const anchors = new Set<string>();
  let fenced = false;
  for (const line of text.split('\n')) {
    if (/^ *```/.test(line)) fenced = !fenced;
    const [, heading] = (!fenced && /^#{1,6} +(.+?) *#*$/.exec(line)) || [];
    if (heading === undefined) continue;
    const slug = heading
      .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\p{M}_ -]/gu, '')
      .replaceAll(' ', '-');
    let unique = slug;
    for (let n = 1; anchors.has(unique); n++) unique = `${slug}-${n}`;
    anchors.add(unique);
  }
  return anchors;
}

/** Targets of links and images, with the line each is on: [text](target), <img src>, <a href>. */
export function linksIn(text: string): { target: string; line: number }[] {
  return prose(text)
    .split('\n')
    .flatMap((line, i) =>
      [...line.matchAll(/\]\(([^)\s]+)(?: "[^"]*")?\)|(?:src|href)="([^"]+)"/g)].map(([, link, attribute]) => ({
        target: link ?? attribute,
        line: i + 1,
      })),
    );
}
