/** `diffit info`: what this installation is and which devices it can use. */
import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../package.js';
import type { Terminal } from './terminal.js';

/** Version of the package. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')).version;
}

export async function info(terminal: Terminal): Promise<number> {
  const installation = {
    version: packageVersion(),
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    memory: totalmem(),
  };
  const { version, node, platform, memory } = installation;
  terminal.print(`diffit ${version}, Node ${node}, ${platform}, ${gib(memory)} of memory`);
  const addon = await loadAddon();
  if (addon instanceof Error) {
    terminal.data({ ...installation, addon: { available: false, reason: addon.message } });
    terminal.print(`addon: not available. ${addon.message}`);
    return 1;
  }
  const { abiVersion, opNames } = addon.native;
  const devices = addon.devices();
  const cpuVariants = addon.cpuVariants();
  terminal.data({
    ...installation,
    addon: { available: true, abiVersion, operations: opNames.length },
    cpuVariants,
    devices,
  });
  terminal.print(`addon: ABI ${abiVersion}, ${opNames.length} operations`);
  for (const { name, available, model, variant, threads, memory, deviceFreeBytes, reason } of devices) {
    if (!available) {
      terminal.print(`${name}: not available. ${reason}`);
      continue;
    }
    const units = name.startsWith('cuda') ? 'multiprocessors' : 'threads';
    const free = deviceFreeBytes === undefined ? '' : ` (${gib(deviceFreeBytes)} free)`;
    terminal.print(`${name}: ${model}, ${variant}, ${threads} ${units}${memory ? `, ${gib(memory)}${free}` : ''}`);
  }
  terminal.print(`CPU code paths: ${cpuVariants.join(', ')}`);
  return 0;
}

/** The modules that need the addon; or why it did not load, which is what info is there to say. */
async function loadAddon() {
  try {
    const { cpuVariants, devices } = await import('../device.js');
    const { native } = await import('../native.js');
    return { cpuVariants, devices, native };
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function gib(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}
