/** Small safetensors files, read and written without the package that is timed. */
import { readFileSync, writeFileSync } from 'node:fs';

export interface FileTensor {
  dtype: string;
  shape: number[];
  data: Float32Array | BigInt64Array;
}

/** The f32 and i64 tensors of a file. */
export function readTensors(path: string): Record<string, FileTensor> {
  const bytes = new Uint8Array(readFileSync(path)).buffer;
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(header).map(([name, entry]) => {
      const [from, to] = entry.data_offsets.map((offset) => 8 + length + offset);
      const own = bytes.slice(from, to);
      const data = entry.dtype === 'I64' ? new BigInt64Array(own) : new Float32Array(own);
      return [name, { dtype: entry.dtype, shape: entry.shape, data }];
    }),
  );
}

export function writeTensors(
  path: string,
  tensors: Record<string, { shape: readonly number[]; data: Float32Array }>,
): void {
  const header: Record<string, unknown> = {};
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: 'F32', shape, data_offsets: [end, end + data.byteLength] };
    end += data.byteLength;
  }
  const text = JSON.stringify(header);
  const head = Buffer.from(text + ' '.repeat((8 - (text.length % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(head.length));
  const parts = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  writeFileSync(path, Buffer.concat([length, head, ...parts]));
}

/** The largest difference over the reference's largest number, of all tensors the worst; infinite where something is missing or no number. */
export function errorOf(found: Record<string, FileTensor>, reference: Record<string, FileTensor>): number {
  let worst = 0;
  for (const [name, { data: expected }] of Object.entries(reference)) {
    const data = found[name]?.data;
    if (data?.length !== expected.length) return Number.POSITIVE_INFINITY;
    let [difference, largest] = [0, 0];
    for (let i = 0; i < expected.length; i++) {
      const off = Math.abs(Number(data[i]) - Number(expected[i]));
      if (Number.isNaN(off)) return Number.POSITIVE_INFINITY;
      difference = Math.max(difference, off);
      largest = Math.max(largest, Math.abs(Number(expected[i])));
    }
    worst = Math.max(worst, largest > 0 ? difference / largest : difference);
  }
  return worst;
}
