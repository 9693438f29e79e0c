/**
 * Work that repeats, replayed by the device in one launch (CUDA graphs): what would be hundreds of launches a step.
 *
 * Nothing changes for the caller. Operations are enqueued and memory is taken as ever; the queue compares them with what
 * it saw before under the same key, and only when every address and every number is the same does it replay
 * (native/binding/replay.h). So what changes from step to step, uploads and random draws above all, belongs outside.
 */
import { type DeviceName, defaultDevice, deviceId } from './device.js';
import { type DeviceId, type GraphStats, native } from './native.js';

interface Key {
  readonly number: number;
  readonly devices: Set<DeviceId>;
}

const keys = new WeakMap<object, Key>();
const collected = new FinalizationRegistry<Key>(({ number, devices }) => {
  for (const device of devices) native.forgetSpans(device, number);
});
let made = 0;
let enabled = process.env.DIFFIT_GRAPHS !== '0';
let open = false;

/** Switches the replaying of repeated work (CUDA graphs) on, the default unless the environment has DIFFIT_GRAPHS=0, or off, for this thread. */
export function setGraphs(on: boolean): void {
  enabled = on;
}

/**
 * How much work a device replayed so far.
 *
 * @throws {OptionError} An unknown device name.
 * @throws {DeviceError} A device that cannot be had.
 */
export function graphStats(name: DeviceName = defaultDevice()): GraphStats {
  return native.graphStats(deviceId(name));
}

/** Runs `fn`, which enqueues work on the device; the same work again under the same `key` may be replayed. @internal */
export function replayed<T>(key: object, name: DeviceName, fn: () => T): T {
  if (!enabled || open) return fn();
  const device = deviceId(name);
  native.beginSpan(device, keyOf(key, device));
  open = true;
  try {
    return fn();
  } finally {
    open = false;
    native.endSpan(device);
  }
}

function keyOf(object: object, device: DeviceId): number {
  let key = keys.get(object);
  if (!key) {
    key = { number: ++made, devices: new Set() };
    keys.set(object, key);
    collected.register(object, key);
  }
  key.devices.add(device);
  return key.number;
}
