/** What is marked in a chart besides its curves: where runs were resumed, and where a value was not finite. */
import { type Content, html } from './html.js';
import { wholeNumber } from './numbers.js';

/** Consecutive steps whose value is not finite. */
export interface Stretch {
  first: number;
  last: number;
  count: number;
}

/** Stretches in a note under a chart. */
const mostListed = 6;

/** History has such values as Infinity. */
export function brokenStretches(steps: readonly number[], values: readonly number[]): Stretch[] {
  const found: Stretch[] = [];
  let open = false;
  for (let i = 0; i < values.length; i++) {
    const broken = values[i] === Number.POSITIVE_INFINITY;
    if (broken && !open) found.push({ first: steps[i], last: steps[i], count: 1 });
    else if (broken) {
      const last = found[found.length - 1];
      last.last = steps[i];
      last.count++;
    }
    open = broken;
  }
  return found;
}

/** Bars from top to bottom over the stretches; those too close to be told apart are one. `x` gives coordinates of steps. */
export function brokenMarks(
  title: string,
  stretches: readonly Stretch[],
  run: number,
  x: (step: number) => number,
  height: number,
): Content {
  const bars: Stretch[] = [];
  for (const stretch of stretches) {
    const before = bars[bars.length - 1];
    if (before && x(stretch.first) - x(before.last) < 3)
      bars[bars.length - 1] = { ...before, last: stretch.last, count: before.count + stretch.count };
    else bars.push(stretch);
  }
  return bars.map(
    (bar) =>
      html`<path class="broken run run-${run}" d="M${x(bar.first)} 0H${x(bar.last)}V${height}H${x(bar.first)}Z"><title>${title}: not finite at ${listed([bar])}</title></path>`,
  );
}

/** The same in words. `name` is the run's, where there are several. */
export function brokenNote(stretches: readonly Stretch[], run: number, name: string | undefined): Content {
  if (stretches.length === 0) return undefined;
  return html`<p class="broken-note run run-${run}"><b>Not finite</b> ${name !== undefined && `in ${name} `}at ${listed(stretches)}.</p>`;
}

export function resumeMarks(
  steps: readonly number[],
  run: number,
  x: (step: number) => number,
  height: number,
): Content {
  return steps.map(
    (step) =>
      html`<path class="resume run run-${run}" d="M${x(step)} 0V${height}"><title>Resumed after step ${wholeNumber(step)}</title></path>`,
  );
}

/** step 3; steps 3, 5 and 9; 99 steps: 101 to 199. */
function listed(stretches: readonly Stretch[]): string {
  const count = stretches.reduce((sum, stretch) => sum + stretch.count, 0);
  const words = stretches
    .slice(0, mostListed)
    .map(({ first, last }) => (first === last ? wholeNumber(first) : `${wholeNumber(first)} to ${wholeNumber(last)}`));
  const more = stretches.length - words.length;
  if (more > 0) words.push(`${wholeNumber(more)} more places`);
  const last = words.pop();
  const list = words.length > 0 ? `${words.join(', ')} and ${last}` : last;
  if (count === 1) return `step ${list}`;
  return count === stretches.length && more === 0 ? `steps ${list}` : `${wholeNumber(count)} steps: ${list}`;
}
