/** A network small enough to train in a test, and data for it made from a counter. */
import '../../lib/autograd.js';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { Batch, LoaderState } from '../../lib/data/index.js';
import { ImageDiffiT, type ImageDiffiTConfig } from '../../lib/models/index.js';
import type { Module } from '../../lib/nn/module.js';
import { manualSeed } from '../../lib/ops/random.js';
import { Adam } from '../../lib/optim/index.js';
import { HostRandom } from '../../lib/random.js';
import { type BatchSource, edmObjective, Trainer, type TrainerOptions } from '../../lib/train/index.js';

export const tinyConfig: ImageDiffiTConfig = {
  imgResolution: 8,
  inChannels: 1,
  baseChannels: 8,
  channelMult: [1, 2],
  numBlocks: 1,
  windowSize: 4,
  timeDim: 16,
  numClasses: 3,
  dropout: 0.1,
  channelsPerHead: 8,
};

export function tinyModel(seed = 0, overrides: Partial<ImageDiffiTConfig> = {}): ImageDiffiT {
  manualSeed(seed);
  return new ImageDiffiT({ ...tinyConfig, ...overrides });
}

/** Batches that depend on their number alone: pixels from the host's generator, labels that count up. */
export class CountingSource implements BatchSource {
  position = 0;
  constructor(
    readonly batch = 4,
    readonly length = Number.POSITIVE_INFINITY,
  ) {}
  async *[Symbol.asyncIterator](): AsyncGenerator<Batch, void, undefined> {
    while (this.position < this.length) {
      const number = this.position++;
      const random = new HostRandom(77, number);
      yield {
        images: Uint8Array.from({ length: this.batch * 64 }, () => random.integer(256)),
        shape: [this.batch, 8, 8, 1],
        labels: BigInt64Array.from({ length: this.batch }, (_, i) => BigInt((number + i) % 3)),
        indices: new Uint32Array(this.batch),
        epoch: 0,
      };
    }
  }
  state(): LoaderState {
    return { epoch: 0, cursor: this.position };
  }
  restore({ cursor }: LoaderState): void {
    this.position = cursor;
  }
}

export function tinyTrainer({
  modelSeed,
  ...options
}: Partial<TrainerOptions<ImageDiffiT>> & { modelSeed?: number } = {}): Trainer<ImageDiffiT> {
  const model = options.model ?? tinyModel(modelSeed);
  return new Trainer({
    model,
    average: new ImageDiffiT(model.config),
    optimizer: new Adam(model.namedParameters(), { lr: 1e-3, finiteOnly: true }),
    objective: edmObjective(),
    loader: new CountingSource(),
    seed: 5,
    emaDecay: () => 0.9,
    ...options,
  });
}

/** A digest of the bits of every tensor of the state dict. */
export async function bits(model: Module): Promise<Record<string, string>> {
  const entries: [string, string][] = [];
  for (const [name, value] of Object.entries(model.stateDict())) {
    entries.push([
      name,
      createHash('sha256')
        .update(await value.bytes())
        .digest('hex'),
    ]);
  }
  return Object.fromEntries(entries);
}

/** A folder that the test removes at its end. */
export function temporaryFolder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'diffit-test-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}
