/** Where statistics are computed: in f64, on the queue of a CPU device, so that the event loop goes on. */
import { defaultDevice, deviceId } from '../device.js';
import { DataError, fromNative } from '../errors.js';
import { type DeviceId, native } from '../native.js';

/** The processor; where a code path of it is the default device, that one. */
export function processor(): DeviceId {
  const name = defaultDevice();
  return deviceId(name.startsWith('cpu') ? name : 'cpu');
}

/** Statistics of the addon, with its errors as the package's. */
export const statistics = native.statistics;

/** Awaits a native call. What does not fit it about the numbers is a DataError that starts with `what`. */
export async function settled(what: string, call: Promise<unknown>): Promise<void> {
  try {
    await call;
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    if (code === 'DIFFIT_INVALID') throw new DataError(`${what}: ${(error as Error).message}`, { cause: error });
    throw fromNative(error);
  }
}
