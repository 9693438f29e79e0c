/** Reads exact numbers of bytes from a stream of chunks of any size. */
import { FileFormatError } from '../errors.js';

export class ByteReader {
  private readonly iterator: AsyncIterator<Uint8Array>;
  private chunk: Uint8Array = new Uint8Array(0);
  private used = 0;
  /** Bytes handed out so far. */
  position = 0;

  /** @param label Names the stream in errors: the path, or the path and the entry in it. */
  constructor(
    stream: AsyncIterable<Uint8Array>,
    readonly path: string,
    readonly label: string = path,
  ) {
    this.iterator = stream[Symbol.asyncIterator]();
  }

  /** Fills `out`. Throws FileFormatError when the stream ends before. */
  async readInto(out: Uint8Array): Promise<void> {
    let done = 0;
    while (done < out.byteLength) {
      if (!(await this.more())) {
        throw this.error(`ends after ${this.position} bytes; expected ${out.byteLength - done} more.`);
      }
      const part = this.chunk.subarray(this.used, this.used + out.byteLength - done);
      out.set(part, done);
      done += part.byteLength;
      this.used += part.byteLength;
      this.position += part.byteLength;
    }
  }

  /** The next `length` bytes; the caller has checked that length against something it trusts. */
  async read(length: number): Promise<Uint8Array> {
    const out = new Uint8Array(length);
    await this.readInto(out);
    return out;
  }

  /** Throws FileFormatError unless the stream is at its end. */
  async end(): Promise<void> {
    if (await this.more()) throw this.error(`goes on after its ${this.position} expected bytes.`);
  }

  /** Gives up the rest of the stream. */
  async close(): Promise<void> {
    await this.iterator.return?.();
  }

  error(message: string, cause?: unknown): FileFormatError {
    return new FileFormatError(`${this.label} ${message}`, { path: this.path, cause });
  }

  /** Is there at least one unread byte? */
  private async more(): Promise<boolean> {
    while (this.used === this.chunk.byteLength) {
      const next = await this.iterator.next();
      if (next.done) return false;
      this.chunk = next.value;
      this.used = 0;
    }
    return true;
  }
}
