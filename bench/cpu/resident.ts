/** Peak resident memory as Linux counts it: the whole process, Node included. */
import { readFileSync, writeFileSync } from 'node:fs';

/** Forgets the peak so far; where the system cannot, it counts from the process's start. */
export function resetPeak(): void {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {}
}

export function residentPeak(): number {
  try {
    const found = /VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'));
    if (found) return 1024 * Number(found[1]);
  } catch {}
  return 1024 * process.resourceUsage().maxRSS;
}
