/**
 * Crops in worker threads: resampling is the one part of a conversion that sharp's own threads do not do. A worker gets the functions as text, so
 * there is no file of its own that sources, dist/ or a bundler would have to place.
 */
import { Worker } from 'node:worker_threads';
import type { Image } from '../io/image.js';
import { makeResize, type Resampling } from '../io/resample.js';
import { type Crop, makeSquare, type Square } from './crop.js';

interface Waiting {
  resolve(image: Image): void;
  reject(error: Error): void;
}

interface Member {
  worker: Worker;
  /** In the order they were asked for, which is that of the answers. */
  waiting: Waiting[];
}

type Question = Parameters<Square>;

/** The body of a worker. esbuild marks functions by a helper of this name, which is not in their text. */
const program = `
const __name = (value) => value;
const square = (${makeSquare})((${makeResize})());
const { parentPort } = require('node:worker_threads');
parentPort.on('message', (question) => {
  const image = square(...question);
  parentPort.postMessage(image, [image.data.buffer]);
});
`;

/** Worker threads that make squares of pictures. They do not keep the process alive; close() ends them. */
export class CropPool {
  private readonly members: Member[] = [];

  constructor(private readonly threads: number) {}

  /** squareImage() in a worker; the picture's bytes go over to it. */
  square(image: Image, size: number, crop: Crop, resampling: Resampling): Promise<Image> {
    const member = this.idlest();
    const question: Question = [image, size, crop, resampling];
    // A view of a pool's or an archive's memory must be copied: it is not its alone.
    const whole = image.data.byteLength === image.data.buffer.byteLength;
    return new Promise<Image>((resolve, reject) => {
      if (member.waiting.length === 0) member.worker.ref();
      member.waiting.push({ resolve, reject });
      member.worker.postMessage(question, whole ? [image.data.buffer as ArrayBuffer] : []);
    });
  }

  /** Ends the workers; what was asked for and not answered is rejected. */
  async close(): Promise<void> {
    const members = this.members.splice(0);
    await Promise.all(members.map(({ worker }) => worker.terminate()));
  }

  private idlest(): Member {
    const found = this.members.reduce<Member | undefined>(
      (least, member) => (least && least.waiting.length <= member.waiting.length ? least : member),
      undefined,
    );
    return found && (found.waiting.length === 0 || this.members.length === this.threads) ? found : this.start();
  }

  private start(): Member {
    const member: Member = { worker: new Worker(program, { eval: true, execArgv: [] }), waiting: [] };
    const { worker, waiting } = member;
    const fail = (error: Error): void => {
      const place = this.members.indexOf(member);
      if (place >= 0) this.members.splice(place, 1);
      for (const { reject } of waiting.splice(0)) reject(error);
    };
    worker.on('message', (image: Image) => {
      waiting.shift()?.resolve(image);
      if (waiting.length === 0) worker.unref();
    });
    worker.on('error', fail);
    worker.on('exit', () => fail(new Error('The worker ended.')));
    this.members.push(member);
    return member;
  }
}
