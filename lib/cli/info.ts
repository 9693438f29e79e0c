/** `diffit info`: what this installation is and which devices it can use. */
import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import type { Terminal } from './terminal.js';

/** Version of the package. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}

export async function info(terminal: Terminal): Promise<number> {
  const { devices, cpuVariants } = await import('../device.js');
  const { native } = await import('../native.js');
  const found = devices();
  const report = {
    version: packageVersion(),
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    memory: totalmem(),
    abiVersion: native.abiVersion,
    operations: native.opNames.length,
    cpuVariants: cpuVariants(),
    devices: found,
  };
  terminal.data(report);
  terminal.print(`diffit ${report.version}, Node ${report.node}, ${report.platform}, ${gib(report.memory)} of memory`);
  terminal.print(`addon: ABI ${report.abiVersion}, ${report.operations} operations`);
  for (const { name, available, model, variant, threads, memory, reason } of found) {
    if (!available) terminal.print(`${name}: not available. ${reason}`);
    else terminal.print(`${name}: ${model}, ${variant}, ${threads} threads${memory ? `, ${gib(memory)}` : ''}`);
  }
  terminal.print(`CPU code paths: ${report.cpuVariants.join(', ')}`);
  return 0;
}

function gib(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}
