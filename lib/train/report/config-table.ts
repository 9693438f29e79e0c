/** The settings of runs as a table: one column per run, rows that differ marked. */
import { type Content, type Html, html } from './html.js';
import type { RunFacts } from './run-facts.js';

/** Longer values are cut. */
const mostCharacters = 120;

type Settings = Map<string, string>;

/** A section with the settings of one run, or of several side by side. */
export function compareConfigs(runs: readonly RunFacts[], swatch: (run: number) => Html): Content {
  const groups = runs.map(settingsOf);
  const titles = [...new Set(groups.flatMap((run) => [...run.keys()]))];
  if (titles.length === 0) return undefined;
  const several = runs.length > 1;
  let different = 0;
  const bodies = titles.map((title) => {
    const settings = groups.map((run) => run.get(title) ?? new Map<string, string>());
    const names = [...new Set(settings.flatMap((run) => [...run.keys()]))];
    const differs = (name: string): boolean => settings.some((run) => run.get(name) !== settings[0].get(name));
    const count = names.filter(differs).length;
    different += count;
    const rows = names.map(
      (name) =>
        html`<tr class="${differs(name) ? 'differs' : 'same'}"><th scope="row">${name}</th>${settings.map((run, i) => cell(run.get(name), i))}</tr>`,
    );
    return html`<tbody class="${count > 0 ? 'differing' : 'same'}"><tr class="group"><th scope="rowgroup" colspan="${runs.length + 1}">${title}</th></tr>${rows}</tbody>`;
  });
  const head = html`<thead><tr><th scope="col">Setting</th>${runs.map(({ name }, i) => html`<th scope="col" class="run run-${i}">${swatch(i)}${name}</th>`)}</tr></thead>`;
  return html`<section aria-label="Settings"><div class="bar"><h2>Settings</h2>
${several && html`<label class="scripted only"><input type="checkbox" id="only-differences"${different > 0 && html` checked`}> only the ${different} that differ</label>`}</div>
<div class="${several ? 'scroll' : 'columns'}"><table class="settings${several && ' compared'}">${several && head}${bodies}</table></div></section>`;
}

function cell(value: string | undefined, run: number): Html {
  if (value === undefined) return html`<td class="run run-${run} absent">–</td>`;
  const shown = value.length > mostCharacters ? `${value.slice(0, mostCharacters)}…` : value;
  return html`<td class="run run-${run}">${shown}</td>`;
}

/** Settings by the object they are in, then by name, in their order. */
function settingsOf({ config, seed, device, deviceModel, data }: RunFacts): Map<string, Settings> {
  const groups = new Map<string, Settings>();
  const add = (path: string, name: string, value: unknown): void => {
    if (value === undefined) return;
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) add(path ? `${path}.${name}` : name, key, inner);
      return;
    }
    const group = groups.get(path) ?? new Map<string, string>();
    groups.set(path, group.set(name, typeof value === 'string' ? value : JSON.stringify(value).replaceAll(',', ', ')));
  };
  add('', 'training', config.training);
  add('', 'data', { source: data, ...(config.data as object) });
  add('', 'run', { seed, device, processor: deviceModel });
  add('', 'model', config.model);
  return groups;
}
