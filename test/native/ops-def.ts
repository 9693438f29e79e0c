/** native/abi/ops.def as data: the tests of the binding check it against the list itself, not against a copy. */
import { readFileSync } from 'node:fs';

export type ParameterKind = 'IN' | 'OPT' | 'OUT' | 'OPT_OUT' | 'INOUT' | 'LIST' | 'LIST_INOUT' | 'INTS' | 'I64' | 'F64';

export interface Parameter {
  kind: ParameterKind;
  name: string;
}

export interface OperationLine {
  name: string;
  parameters: Parameter[];
}

const text = readFileSync(new URL('../../native/abi/ops.def', import.meta.url), 'utf8').replace(
  /\/\*[\s\S]*?\*\//g,
  '',
);

export const operations: OperationLine[] = [...text.matchAll(/DIFFIT_OP\((\w+),((?:\s*\w+\(\w+\),?)+)\)/g)].map(
  ([, name, list]) => ({
    name,
    parameters: [...list.matchAll(/(\w+)\((\w+)\)/g)].map(([, kind, parameter]) => ({
      kind: kind as ParameterKind,
      name: parameter,
    })),
  }),
);

export const isTensor = ({ kind }: Parameter) => ['IN', 'OPT', 'OUT', 'OPT_OUT', 'INOUT'].includes(kind);
export const isOptional = ({ kind }: Parameter) => kind === 'OPT' || kind === 'OPT_OUT';
export const isList = ({ kind }: Parameter) => kind === 'LIST' || kind === 'LIST_INOUT';
