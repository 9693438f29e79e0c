/**
 * A plugin for TypeDoc (typedoc.json): a page is called what its first heading says, and stands in the navigation under the group and in the
 * order of this list. The pages themselves need no front matter, which GitHub and npm would show.
 */
import { Converter } from 'typedoc';

const groups = {
  Start: ['getting-started', 'install', 'training', 'latent', 'training-report', 'README'],
  Guides: ['memory', 'numerics', 'cuda', 'troubleshooting'],
  Reference: ['cli', 'benchmarks'],
  'Working on diffit': ['architecture', 'adding-an-op'],
};

/** @param {import('typedoc').Application} app */
export function load(app) {
  app.converter.on(Converter.EVENT_CREATE_DOCUMENT, (_, page) => {
    const [group] = Object.entries(groups).find(([, names]) => names.includes(page.name)) ?? ['Start'];
    page.frontmatter.group = group;
    const heading = page.content.find(({ kind }) => kind === 'text');
    const [line, title] = /^\s*# +(.+)\n/m.exec(heading?.text ?? '') ?? [];
    if (title === undefined) return;
    page.name = title;
    heading.text = heading.text.replace(line, '');
  });
}
