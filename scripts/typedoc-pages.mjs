/**
 * A plugin for TypeDoc (typedoc.json): a page is called what its first heading says, and stands in the navigation in the group that this list
 * gives it. The pages themselves need no front matter, which GitHub and npm would show.
 */
import { Converter } from 'typedoc';

const groups = {
  Start: [
    'docs/getting-started',
    'docs/install',
    'docs/training',
    'docs/datasets',
    'docs/latent',
    'docs/evaluation',
    'docs/training-report',
    'examples/README',
  ],
  Guides: ['docs/memory', 'docs/numerics', 'docs/reliability', 'docs/cuda', 'docs/troubleshooting'],
  Reference: ['docs/cli', 'docs/benchmarks'],
  'Working on diffit': ['docs/architecture', 'docs/adding-an-op'],
};
const order = Object.values(groups).flat();

/** @param {import('typedoc').Application} app */
export function load(app) {
  const places = new Map();
  app.converter.on(Converter.EVENT_CREATE_DOCUMENT, (_, page) => {
    const [group] = Object.entries(groups).find(([, names]) => names.includes(page.name)) ?? [];
    if (group === undefined) throw new Error(`${page.name} is in no group of scripts/typedoc-pages.mjs`);
    page.frontmatter.group = group;
    const place = order.indexOf(page.name);
    const heading = page.content.find(({ kind }) => kind === 'text');
    const [, title] = /^# +(.+)$/m.exec(heading?.text ?? '') ?? [];
    if (title === undefined) throw new Error(`${page.name} has no heading`);
    page.name = title;
    places.set(page, place);
  });
  // The first page has the name of the project above it already.
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    const [first] = project.readme ?? [];
    if (first?.kind === 'text') first.text = first.text.replace(/^# .+\n/, '');
  });
  app.converter.on(
    Converter.EVENT_RESOLVE_END,
    ({ project }) => {
      project.documents?.sort((a, b) => places.get(a) - places.get(b));
      for (const group of project.groups ?? [])
        group.children.sort((a, b) => (places.get(a) ?? 0) - (places.get(b) ?? 0));
    },
    -1000, // after the groups are made
  );
}
