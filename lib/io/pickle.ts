/**
 * Reads the few pickles that data sets come in, and runs nothing: a pickle is a program that can call any function, so this reader knows the
 * opcodes of plain values and, by name, the three constructors of a NumPy array. Anything else is refused. (The opcodes of protocols 0 to 4;
 * CIFAR's files are protocol 2, of Python 2.)
 */
import { FileFormatError } from '../errors.js';
import { quote } from './files.js';

/** An array as NumPy pickles it: rows first, bytes as they are. */
export interface PickledArray {
  shape: readonly number[];
  /** NumPy's name: "u1" is uint8, "i8" int64. */
  dtype: string;
  bytes: Uint8Array;
}

/** What a pickle holds. Dictionaries are Maps; strings of Python 2, which may be bytes, are read as Latin-1. */
export type Pickled = null | boolean | number | string | Uint8Array | PickledArray | Pickled[] | Map<Pickled, Pickled>;

/** Is this an array? */
export function isPickledArray(value: Pickled | undefined): value is PickledArray {
  return typeof value === 'object' && value !== null && 'dtype' in value;
}

/** On the stack besides values: a mark, and the functions that may be called. */
const mark = Symbol('mark');
type Callable = 'reconstruct' | 'ndarray' | 'dtype' | 'encode';
interface Global {
  call: Callable;
}
interface DType {
  dtypeName: string;
}
type Item = Pickled | typeof mark | Global | DType | PickledArray;

const callables: Record<string, Callable> = {
  'numpy.core.multiarray _reconstruct': 'reconstruct',
  'numpy._core.multiarray _reconstruct': 'reconstruct',
  'numpy ndarray': 'ndarray',
  'numpy dtype': 'dtype',
  '_codecs encode': 'encode',
};

/** The value of a pickle. `path` names it in messages. Throws FileFormatError for a damaged one, and one that would call a function. */
export function readPickle(bytes: Uint8Array, path: string): Pickled {
  return new Unpickler(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), path).run();
}

class Unpickler {
  private at = 0;
  private readonly stack: Item[] = [];
  private readonly memo = new Map<number, Item>();

  constructor(
    private readonly bytes: Buffer,
    private readonly path: string,
  ) {}

  run(): Pickled {
    for (;;) {
      const code = String.fromCharCode(this.take(1)[0]);
      if (code === '.') return this.value(this.pop());
      this.step(code);
    }
  }

  private fail(message: string): never {
    throw new FileFormatError(`${this.path} is no pickle that can be read: ${message} (byte ${this.at}).`, {
      path: this.path,
    });
  }

  private take(count: number): Buffer {
    if (count < 0 || this.at + count > this.bytes.byteLength) this.fail('it ends too early');
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  private line(): string {
    const end = this.bytes.indexOf(10, this.at);
    if (end < 0) this.fail('it ends too early');
    const text = this.bytes.toString('latin1', this.at, end);
    this.at = end + 1;
    return text;
  }

  private pop(): Item {
    const item = this.stack.pop();
    if (item === undefined) this.fail('its stack is empty');
    return item;
  }

  private top(): Item {
    const item = this.stack.at(-1);
    if (item === undefined) this.fail('its stack is empty');
    return item;
  }

  private value(item: Item): Pickled {
    if (item === mark || (typeof item === 'object' && item !== null && ('call' in item || 'dtypeName' in item))) {
      this.fail('a value is missing');
    }
    return item as Pickled;
  }

  private toMark(): Item[] {
    const start = this.stack.lastIndexOf(mark);
    if (start < 0) this.fail('a mark is missing');
    const items = this.stack.splice(start + 1);
    this.stack.pop();
    return items;
  }

  private length(bytes: 1 | 4 | 8): number {
    const field = this.take(bytes);
    const value = bytes === 8 ? Number(field.readBigUInt64LE()) : field.readUIntLE(0, bytes);
    if (value > this.bytes.byteLength) this.fail('it ends too early');
    return value;
  }

  private step(code: string): void {
    const { stack } = this;
    switch (code) {
      case '\x80': // PROTO
        if (this.take(1)[0] > 4) this.fail('its protocol is newer than 4');
        break;
      case '\x95': // FRAME
        this.take(8);
        break;
      case '(':
        stack.push(mark);
        break;
      case '0': // POP
        this.pop();
        break;
      case 'N':
        stack.push(null);
        break;
      case '\x88':
        stack.push(true);
        break;
      case '\x89':
        stack.push(false);
        break;
      case 'I': {
        const text = this.line();
        stack.push(text === '01' || text === '00' ? text === '01' : this.number(text));
        break;
      }
      case 'L':
        stack.push(this.number(this.line().replace(/L$/, '')));
        break;
      case 'F':
        stack.push(this.number(this.line()));
        break;
      case 'J':
        stack.push(this.take(4).readInt32LE());
        break;
      case 'K':
        stack.push(this.take(1)[0]);
        break;
      case 'M':
        stack.push(this.take(2).readUInt16LE());
        break;
      case '\x8a': // LONG1
        stack.push(this.long(this.take(this.length(1))));
        break;
      case 'G':
        stack.push(this.take(8).readDoubleBE());
        break;
      case 'U':
        stack.push(this.take(this.length(1)).toString('latin1'));
        break;
      case 'T':
        stack.push(this.take(this.length(4)).toString('latin1'));
        break;
      case 'X':
        stack.push(this.take(this.length(4)).toString('utf8'));
        break;
      case '\x8c':
        stack.push(this.take(this.length(1)).toString('utf8'));
        break;
      case 'C':
        stack.push(new Uint8Array(this.take(this.length(1))));
        break;
      case 'B':
        stack.push(new Uint8Array(this.take(this.length(4))));
        break;
      case '\x8e':
        stack.push(new Uint8Array(this.take(this.length(8))));
        break;
      case ']':
      case ')':
        stack.push([]);
        break;
      case 'l':
      case 't':
        stack.push(this.toMark() as Pickled[]);
        break;
      case '\x85':
      case '\x86':
      case '\x87': {
        const count = code.charCodeAt(0) - 0x84;
        if (stack.length < count) this.fail('its stack is empty');
        stack.push(stack.splice(-count) as Pickled[]);
        break;
      }
      case '}':
        stack.push(new Map<Pickled, Pickled>());
        break;
      case 'd':
        this.set(new Map<Pickled, Pickled>(), this.toMark(), true);
        break;
      case 'a': {
        const item = this.value(this.pop());
        this.list().push(item);
        break;
      }
      case 'e': {
        const items = this.toMark();
        const list = this.list();
        for (const item of items) list.push(this.value(item));
        break;
      }
      case 's': {
        const value = this.pop();
        const key = this.pop();
        this.set(this.map(), [key, value], false);
        break;
      }
      case 'u': {
        const items = this.toMark();
        this.set(this.map(), items, false);
        break;
      }
      case 'p':
        this.memo.set(this.number(this.line()), this.top());
        break;
      case 'q':
        this.memo.set(this.take(1)[0], this.top());
        break;
      case 'r':
        this.memo.set(this.take(4).readUInt32LE(), this.top());
        break;
      case '\x94': // MEMOIZE
        this.memo.set(this.memo.size, this.top());
        break;
      case 'g':
        this.recall(this.number(this.line()));
        break;
      case 'h':
        this.recall(this.take(1)[0]);
        break;
      case 'j':
        this.recall(this.take(4).readUInt32LE());
        break;
      case 'c': {
        const module = this.line();
        this.global(module, this.line());
        break;
      }
      case '\x93': {
        // STACK_GLOBAL
        const [name, module] = [this.pop(), this.pop()];
        this.global(String(module), String(name));
        break;
      }
      case 'R':
        this.call();
        break;
      case 'b':
        this.build();
        break;
      default:
        this.fail(`it has the opcode ${quote(code)}, which data do not need`);
    }
  }

  private number(text: string): number {
    const value = Number(text);
    if (text.trim() === '' || Number.isNaN(value)) this.fail(`${quote(text)} is no number`);
    return value;
  }

  private long(bytes: Buffer): number {
    let value = 0n;
    for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
    return Number(BigInt.asIntN(8 * bytes.length, value));
  }

  private list(): Pickled[] {
    const list = this.top();
    if (!Array.isArray(list)) this.fail('a list is missing');
    return list;
  }

  private map(): Map<Pickled, Pickled> {
    const map = this.top();
    if (!(map instanceof Map)) this.fail('a dictionary is missing');
    return map;
  }

  private set(map: Map<Pickled, Pickled>, items: readonly Item[], push: boolean): void {
    if (items.length % 2 !== 0) this.fail('a value is missing');
    for (let i = 0; i < items.length; i += 2) map.set(this.value(items[i]), this.value(items[i + 1]));
    if (push) this.stack.push(map);
  }

  private recall(index: number): void {
    const item = this.memo.get(index);
    if (item === undefined) this.fail(`it refers to ${index}, which it does not have`);
    this.stack.push(item);
  }

  private global(module: string, name: string): void {
    const call = callables[`${module} ${name}`];
    if (!call) this.fail(`it would call ${quote(`${module}.${name}`)}; only arrays of NumPy are read`);
    this.stack.push({ call });
  }

  private call(): void {
    const given = this.pop();
    const target = this.pop();
    const args = Array.isArray(given) ? given : this.fail('arguments are missing');
    const call = typeof target === 'object' && target !== null && 'call' in target ? target.call : undefined;
    const [first] = args;
    if (call === 'reconstruct') this.stack.push({ shape: [], dtype: '', bytes: new Uint8Array(0) });
    else if (call === 'dtype' && typeof first === 'string')
      this.stack.push({ dtypeName: first.replace(/^[<>|=]/, '') });
    else if (call === 'encode' && typeof first === 'string')
      this.stack.push(new Uint8Array(Buffer.from(first, 'latin1')));
    else this.fail('it calls what is no array');
  }

  /** The state of an array, (version, shape, dtype, Fortran order, bytes), or that of its dtype, (version, byte order, …). */
  private build(): void {
    const state = this.pop();
    const target = this.top();
    if (!Array.isArray(state) || typeof target !== 'object' || target === null) this.fail('a state is missing');
    const items = state as unknown as Item[];
    if ('dtypeName' in target) {
      if (items[1] === '>' && !target.dtypeName.endsWith('1')) this.fail('its numbers are big-endian');
      return;
    }
    if (!isPickledArray(target as Pickled)) this.fail('it sets the state of what is no array');
    const [, shape, dtype, fortran, content] = items;
    const name = typeof dtype === 'object' && dtype !== null && 'dtypeName' in dtype ? dtype.dtypeName : undefined;
    const bytes = typeof content === 'string' ? new Uint8Array(Buffer.from(content, 'latin1')) : content;
    if (!Array.isArray(shape) || name === undefined || fortran === true || !(bytes instanceof Uint8Array)) {
      this.fail('an array is not laid out in rows of plain numbers');
    }
    Object.assign(target, { shape: shape.map(Number), dtype: name, bytes });
  }
}
