/** Timing: warm-up, as many samples as the time allows, medians. */
import { type DeviceName, timeDevice } from '../device.js';
import { replayed } from '../graph.js';
import type { Timing } from './report.js';

/** How a device's work is timed. */
export interface DeviceTimer {
  readonly clock: Timing['clock'];
  /** Milliseconds of each of `count` pieces of work, which `enqueue` starts and does not wait for. */
  samples(enqueue: (sample: number) => void, count: number): Promise<number[]>;
}

/**
 * Marks in the device's queue: from when the device comes to the work until it is done. With `key` (any object) work that repeats
 * is replayed in one launch, where the device can: the launches of single operations then do not show.
 */
export function deviceTimer(device: DeviceName, key?: object): DeviceTimer {
  return {
    clock: 'device',
    async samples(enqueue, count) {
      const times: number[] = [];
      for (let i = 0; i < count; i++) {
        const work = (): void => enqueue(i);
        times.push(await timeDevice(key ? () => replayed(key, device, work) : work, device));
      }
      return times;
    },
  };
}

/** How long to measure. */
export interface Effort {
  /** Samples wanted, and how many there are at least, however long they take. */
  samples: number;
  least: number;
  /** Milliseconds for the samples of one spec, and those a sample should have at least (short work is repeated in it). */
  budget: number;
  sample: number;
  warmUps: number;
}

export const efforts: Record<'gpu' | 'cpu' | 'quick', Effort> = {
  gpu: { samples: 30, least: 20, budget: 3000, sample: 2, warmUps: 5 },
  cpu: { samples: 20, least: 3, budget: 4000, sample: 1, warmUps: 1 },
  quick: { samples: 3, least: 2, budget: 200, sample: 0, warmUps: 1 },
};

/** Most runs in one sample: a device's queue should not grow without end. */
const maxRepeats = 200;

/** Times `run`, which enqueues work on input set `set` of `sets` and returns. */
export async function measure(
  timer: DeviceTimer,
  run: (set: number) => void,
  sets: number,
  effort: Effort,
): Promise<Timing> {
  let turn = 0;
  const times = (count: number, repeats: number): Promise<number[]> =>
    timer.samples(() => {
      for (let i = 0; i < repeats; i++) run(turn++ % sets);
    }, count);
  await times(Math.max(effort.warmUps, 1), 1);
  const [once] = await times(1, 1);
  const wanted = Math.min(maxRepeats, Math.max(1, Math.ceil(effort.sample / once)));
  // Whole rounds of all sets: every sample is then the same work, which can be replayed.
  const repeats = wanted > 1 ? Math.ceil(wanted / sets) * sets : 1;
  turn = 0;
  await times(effort.warmUps, repeats);
  const fitting = Math.floor(effort.budget / (once * repeats));
  const samples = Math.max(effort.least, Math.min(effort.samples, fitting));
  const each = (await times(samples, repeats)).map((time) => time / repeats);
  return { ...quantiles(each), samples, repeats, clock: timer.clock };
}

/** Median, 10th and 90th percentile. */
export function quantiles(times: readonly number[]): Pick<Timing, 'median' | 'low' | 'high'> {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number): number => {
    const place = share * (sorted.length - 1);
    const below = sorted[Math.floor(place)];
    return below + (sorted[Math.ceil(place)] - below) * (place - Math.floor(place));
  };
  return { median: at(0.5), low: at(0.1), high: at(0.9) };
}
