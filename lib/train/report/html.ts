/** Text that is safe in a page: everything put into an html`...` template is escaped unless it is such a template itself. */

/** Markup, as opposed to text. */
export class Html {
  constructor(readonly markup: string) {}
}

/** What a template takes: text, numbers, markup, lists of these; undefined and false leave nothing. */
export type Content = string | number | Html | undefined | false | readonly Content[];

/** A template whose values are escaped, in elements and in attributes in double quotes. */
export function html(parts: TemplateStringsArray, ...values: readonly Content[]): Html {
  return new Html(parts.map((part, i) => part + (i < values.length ? markupOf(values[i]) : '')).join(''));
}

/** A value as JSON in a <script>: no text in it can end the element. */
export function jsonScript(id: string, value: unknown): Html {
  return html`<script type="application/json" id="${id}">${new Html(JSON.stringify(value).replaceAll('<', '\\u003c'))}</script>`;
}

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

function markupOf(value: Content): string {
  if (value instanceof Html) return value.markup;
  if (value === undefined || value === false) return '';
  if (typeof value === 'object') return value.map(markupOf).join('');
  return String(value).replace(/[&<>"']/g, (character) => entities[character]);
}
