/** Files that may lie on the hub: fetched with a progress bar, or taken as they are; and autoencoders from them. */
import { dirname } from 'node:path';
import { hubFile, isHubAddress } from '../io/index.js';
import type { AutoencoderKL } from '../models/index.js';
import { autoencoderFiles, loadAutoencoder } from '../train/index.js';
import type { Progress, Terminal } from './terminal.js';

const mebibyte = 2 ** 20;

/** The local path of a path or hf:// address. Errors as io.hubFile's. */
export async function localFile(address: string, terminal: Terminal, signal: AbortSignal): Promise<string> {
  if (!isHubAddress(address)) return address;
  let progress: Promise<Progress> | undefined;
  try {
    return await hubFile(address, {
      signal,
      onProgress: async ({ loadedBytes, totalBytes }) => {
        progress ??= terminal.progress(`Downloading ${address}, MiB`, Math.ceil(totalBytes / mebibyte));
        const last = loadedBytes === totalBytes;
        (await progress).update(Math[last ? 'ceil' : 'floor'](loadedBytes / mebibyte));
      },
    });
  } finally {
    (await progress)?.stop();
  }
}

/** The local folder of a folder or hf://OWNER/NAME address, with the named files in it. */
export async function localFolder(
  address: string,
  files: readonly string[],
  terminal: Terminal,
  signal: AbortSignal,
): Promise<string> {
  if (!isHubAddress(address)) return address;
  const paths: string[] = [];
  for (const file of files) paths.push(await localFile(`${address.replace(/\/$/, '')}/${file}`, terminal, signal));
  return dirname(paths[0]);
}

/** The autoencoder of a --vae option: a diffusers folder, a file, or hf://OWNER/NAME; undefined without one. */
export async function openVae(
  address: string | undefined,
  terminal: Terminal,
  signal: AbortSignal = new AbortController().signal,
): Promise<AutoencoderKL | undefined> {
  if (address === undefined) return undefined;
  return loadAutoencoder(await localFolder(address, autoencoderFiles, terminal, signal), { signal });
}
