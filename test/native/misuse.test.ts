/** Every operation, called wrongly in every way: a clear error, never a crash, and a device that works on. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { type NativeOps, native, type TensorId } from '../../lib/native.js';
import { isList, isOptional, isTensor, operations, type Parameter } from './ops-def.js';

type Call = (...args: unknown[]) => void;

const device = native.openDevice('cpu', '', 2);
const call = (name: string) => native.ops[name as keyof NativeOps] as unknown as Call;

const make = (dtype: number, ...shape: number[]) => native.alloc(device, dtype, shape.length, ...shape);
const x = make(0, 2, 2);
native.ops.fill(x, 1);
const stale = make(0, 1);
native.release(stale);

/** Arguments of the right types, whatever they mean together. */
const wellTyped = (parameters: Parameter[]): unknown[] =>
  parameters.map((parameter) =>
    isTensor(parameter) ? x : isList(parameter) ? [x, x] : parameter.kind === 'INTS' ? [1] : 0,
  );

const replaced = (values: unknown[], i: number, value: unknown) => values.map((v, k) => (k === i ? value : v));

/** The code of the error of a call; 'ok' when it was enqueued. */
const outcome = (name: string, args: unknown[]): string => {
  try {
    call(name)(...args);
    return 'ok';
  } catch (error) {
    return (error as { code: string }).code;
  }
};

const settle = () => native.synchronize(device).catch(() => {});

t.test('the addon, ops.def and lib/native.ts list the same operations and parameters', async (t) => {
  t.same(
    native.opNames,
    operations.map(({ name }) => name),
  );
  t.same(Object.keys(native.ops), native.opNames);
  const source = readFileSync(new URL('../../lib/native.ts', import.meta.url), 'utf8');
  const types = source.slice(source.indexOf('interface NativeOps'), source.indexOf('export interface NativeAddon'));
  for (const { name, parameters } of operations) {
    const signature = types.match(new RegExp(`\\b${name}\\(([^)]*)\\): void`))?.[1] ?? '';
    const typed = [...signature.matchAll(/(\w+): (TensorId|Ids|Scalar|readonly number\[\])/g)].map(([, p, type]) => [
      p,
      type,
    ]);
    const expected = parameters.map((p) => [
      p.name,
      isTensor(p) ? 'TensorId' : isList(p) ? 'Ids' : p.kind === 'INTS' ? 'readonly number[]' : 'Scalar',
    ]);
    t.same(typed, expected, name);
  }
});

for (const { name, parameters } of operations) {
  t.test(name, async (t) => {
    const bad = 'DIFFIT_BAD_ARGUMENT';
    const good = wellTyped(parameters);
    t.throws(() => call(name)(), { code: bad, message: `${name}: expected ${good.length} arguments, got 0.` });
    t.equal(outcome(name, [...good, 0]), bad, 'one argument too many');
    t.equal(outcome(name, good.slice(1)), bad, 'one too few');
    t.equal(
      outcome(
        name,
        good.map(() => 0),
      ),
      bad,
      'zeros',
    );

    for (const [i, parameter] of parameters.entries()) {
      const where = `argument ${i + 1} (${parameter.name})`;
      const expectAll = (values: unknown[], code: string) => {
        for (const value of values) {
          const args = replaced(good, i, value);
          const label = `${where}: ${typeof value === 'bigint' ? `${value}n` : (JSON.stringify(value) ?? String(value))}`;
          t.throws(
            () => call(name)(...args),
            { code, message: new RegExp(`^${name}: argument ${i + 1} \\(${parameter.name}\\) `) },
            label,
          );
        }
      };
      const notNumbers = [undefined, null, 'x', {}, true, 1n, Symbol.iterator, () => 0];
      const notIds = [stale, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53];
      if (isTensor(parameter)) {
        expectAll([...notNumbers, [x]], bad);
        expectAll(notIds, 'DIFFIT_STALE_ID');
        if (isOptional(parameter)) t.equal(outcome(name, replaced(good, i, 0)), 'ok', `${where} may be absent`);
        else expectAll([0], bad);
      } else if (isList(parameter)) {
        expectAll([...notNumbers, x, [0], [x, 'x'], [[x]], new Array(2), { length: 1, 0: x }], bad);
        expectAll(
          notIds.map((id) => [x, id]),
          'DIFFIT_STALE_ID',
        );
      } else if (parameter.kind === 'INTS') {
        expectAll([...notNumbers, 1, ['1'], [1.5], [Number.NaN], [2 ** 53], [[1]], new Array(9).fill(1)], bad);
      } else {
        expectAll([...notNumbers, [1]], bad);
        if (parameter.kind === 'I64') expectAll([0.5, Number.NaN, Number.NEGATIVE_INFINITY, 2 ** 53, -1e300], bad);
        else
          for (const v of [Number.NaN, Number.POSITIVE_INFINITY, -1e300])
            t.equal(outcome(name, replaced(good, i, v)), 'ok');
      }
    }
    await settle();
    native.ops.fill(x, 3);
    t.same([...new Float32Array(await native.read(x))], [3, 3, 3, 3], 'the device works on');
  });
}

t.test('lists without a tensor have nothing to do', async (t) => {
  native.ops.ema([], [], 0.5);
  native.ops.adam([], [], [], [], [], [], 0, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  await native.synchronize(device);
  t.pass();
});

t.test('arguments that do not fit together never crash a kernel', async (t) => {
  // A fixed sequence of small nonsense (Park and Miller's generator), on every variant of the processor.
  let state = 1;
  const random = (n: number) => {
    state = (state * 48271) % 2147483647;
    return state % n;
  };
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  const counts = new Map<string, number>();
  for (const variant of native.cpuVariants()) {
    const target = native.openDevice(`cpu:${variant}`, '', 2);
    const before = native.memory(target).liveBuffers;
    const tensors: TensorId[] = [];
    for (const shape of [
      [],
      [0],
      [1],
      [2],
      [3],
      [8],
      [2, 2],
      [2, 3],
      [0, 3],
      [3, 1],
      [2, 2, 2, 1],
      [2, 2, 2, 3],
      [1, 2, 2, 6],
      [2, 4, 4, 12],
      [9, 2],
    ]) {
      for (const dtype of shape.length > 3 ? [0, 0] : [0, 0, 4, 5]) {
        const id = native.alloc(target, dtype, shape.length, ...shape);
        native.ops.fill(id, 1);
        tensors.push(id);
      }
    }
    for (const { name, parameters } of operations) {
      for (let round = 0; round < 150; round++) {
        const args = parameters.map((parameter) => {
          if (isTensor(parameter)) return isOptional(parameter) && random(2) ? 0 : pick(tensors);
          if (isList(parameter)) return Array.from({ length: random(3) }, () => pick(tensors));
          if (parameter.kind === 'INTS')
            return Array.from({ length: random(4) }, () => pick([0, 1, 2, 3, -1, 2 ** 40]));
          if (parameter.kind === 'F64') return pick([0, 1, -1, 0.5, Number.NaN, 1e300]);
          return pick([0, 1, 2, 3, 4, 8, -1, 2 ** 31, 2 ** 52, -(2 ** 52)]);
        });
        call(name)(...args);
        await native.synchronize(target).then(
          () => counts.set('done', (counts.get('done') ?? 0) + 1),
          ({ code, op, message }) => {
            if (op !== name || !message.startsWith(`${name}: `)) t.fail(`${name} failed with ${op}: ${message}`);
            counts.set(code, (counts.get(code) ?? 0) + 1);
          },
        );
      }
    }
    for (const id of tensors) native.release(id);
    t.equal(native.memory(target).liveBuffers, before);
  }
  t.ok((counts.get('done') ?? 0) > 100, JSON.stringify([...counts]));
  t.ok((counts.get('DIFFIT_INVALID') ?? 0) > 1000);
  t.notOk(counts.get('DIFFIT_DEVICE_FAULT'));
});
