/** What is wrong with an option, in words: `steps is 0, expected an integer of at least 1`. */
import type { z } from 'zod';
import { suggestion } from './errors.js';

/** The parts of zod's schemas that say what they take. */
interface Definition {
  readonly type: string;
  readonly innerType?: z.ZodType;
  readonly element?: z.ZodType;
  readonly items?: readonly z.ZodType[];
  readonly options?: readonly z.ZodType[];
  readonly shape?: Readonly<Record<string, z.ZodType>>;
  readonly valueType?: z.ZodType;
  readonly entries?: Readonly<Record<string, unknown>>;
  readonly values?: readonly unknown[];
  readonly format?: string;
  readonly checks?: readonly { readonly _zod: { readonly def: Check } }[];
}

interface Check {
  readonly check: string;
  readonly value?: number;
  readonly minimum?: number;
  readonly inclusive?: boolean;
}

type Issue = z.core.$ZodIssue;

/** How zod's own messages start. */
const ownMessages = /^(Invalid|Too |Unrecognized)/;

/** Most characters of a value that a message shows. */
const shown = 40;

/** One issue that `schema` found with `value`, as the rest of a sentence. */
export function problem(schema: z.ZodType, value: unknown, issue: Issue): string {
  const at = schemaAt(schema, issue.path);
  const place = issue.path.reduce<string>(
    (path, key) => (typeof key === 'number' ? `${path}[${key}]` : path ? `${path}.${String(key)}` : String(key)),
    '',
  );
  if (issue.code === 'unrecognized_keys') {
    const known = Object.keys((at && definition(unwrapped(at)).shape) ?? {});
    return issue.keys.map((key) => unknownOption(place ? `${place}.${key}` : key, key, known)).join('; ');
  }
  const given = valueAt(value, issue.path);
  const wanted = ownMessages.test(issue.message) ? undefined : issue.message; // a schema's own words go before ours
  const expected = wanted ?? `expected ${describe(at ?? schema, given)}`;
  if (place === '') return `${expected} of options, got ${show(given)}`;
  return `${place} is ${given === undefined ? 'missing' : show(given)}, ${expected}`;
}

/** `unknown option "lrr" (did you mean "lr"?)`. */
export function unknownOption(path: string, key: string, known: readonly string[]): string {
  const hint = suggestion(key, known);
  const help = hint ? ` (did you mean "${hint}"?)` : `, expected one of: ${known.join(', ')}`;
  return `unknown option "${path}"${help}`;
}

function definition(schema: z.ZodType): Definition {
  return (schema as unknown as { _zod: { def: Definition } })._zod.def;
}

/** Without .optional(), .default() and the like. */
function unwrapped(schema: z.ZodType): z.ZodType {
  let inner = schema;
  for (let next = definition(inner).innerType; next && !inner.description; next = definition(inner).innerType)
    inner = next;
  return inner;
}

function schemaAt(schema: z.ZodType, path: readonly PropertyKey[]): z.ZodType | undefined {
  let at: z.ZodType | undefined = schema;
  for (const key of path) {
    if (!at) return undefined;
    at = memberAt(unwrapped(at), key);
  }
  return at;
}

function memberAt(schema: z.ZodType, key: PropertyKey): z.ZodType | undefined {
  const { shape, element, items, valueType, options = [] } = definition(schema);
  const own = shape?.[key as string] ?? items?.[key as number] ?? element ?? valueType;
  return own ?? options.map((option) => memberAt(unwrapped(option), key)).find((member) => member !== undefined);
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], value);
}

/** What a schema takes: "an integer of at least 1". */
function describe(schema: z.ZodType, given?: unknown): string {
  const inner = unwrapped(schema);
  if (inner.description) return inner.description;
  const { type, element, items = [], options = [], entries, values, format, checks = [] } = definition(inner);
  switch (type) {
    case 'number':
      return (
        (format === 'safeint' ? 'an integer' : given === Number.POSITIVE_INFINITY ? 'a finite number' : 'a number') +
        bounds(checks.map((check) => check._zod.def))
      );
    case 'string':
      return checks.some((check) => check._zod.def.minimum === 1) ? 'a string that is not empty' : 'a string';
    case 'boolean':
      return 'true or false';
    case 'enum':
      return Object.values(entries ?? {})
        .map(show)
        .join(' or ');
    case 'literal':
      return (values ?? []).map(show).join(' or ');
    case 'array':
      return `a list, each entry ${describe(element as z.ZodType)}`;
    case 'tuple':
      return `[${items.map((item) => describe(item)).join(', ')}]`;
    case 'union':
      return options.map((option) => describe(option)).join(', or ');
    case 'null':
    case 'undefined':
      return type;
    default:
      return 'an object';
  }
}

function bounds(checks: readonly Check[]): string {
  const low = checks.find(({ check }) => check === 'greater_than');
  const high = checks.find(({ check }) => check === 'less_than');
  const multiple = checks.find(({ check }) => check === 'multiple_of');
  let text = '';
  if (low && high)
    text = ` from ${low.inclusive ? '' : 'above '}${low.value} to ${high.inclusive ? '' : 'below '}${high.value}`;
  else if (low) text = low.inclusive ? ` of at least ${low.value}` : ` above ${low.value}`;
  else if (high) text = high.inclusive ? ` of at most ${high.value}` : ` below ${high.value}`;
  return multiple ? `${text}${text ? ' and' : ''} a multiple of ${multiple.value}` : text;
}

/** A value for a message, short whatever it is. */
function show(value: unknown): string {
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'string') return JSON.stringify(value.length > shown ? `${value.slice(0, shown)}…` : value);
  if (typeof value !== 'object' || value === null) return String(value);
  const { shape, dtype } = value as { shape?: unknown; dtype?: unknown };
  if (Array.isArray(shape) && typeof dtype === 'string') return `a tensor [${shape.join(', ')}] of ${dtype}`;
  if (!Array.isArray(value)) {
    const name = Object.getPrototypeOf(value)?.constructor?.name ?? 'Object';
    return name === 'Object' ? 'an object' : `an object of class ${name}`;
  }
  const text = value.map(show).join(', ');
  return `[${text.length > shown ? `${text.slice(0, shown)}…` : text}]`;
}
