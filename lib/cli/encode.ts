/** `diffit data encode`: a data set of images to latents, for training latent models. */
import '../autograd.js';
import { type LatentSettings, openDataset } from '../data/index.js';
import { setDefaultDevice } from '../device.js';
import type { AutoencoderKL } from '../models/index.js';
import { encodeLatents } from '../train/index.js';
import { openVae } from './download.js';
import { interruptible } from './interrupt.js';
import { ensureWritableFolder } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface EncodeOptions {
  data: string;
  vae: string;
  out: string;
  size: number;
  batch: number;
  shardSize: number;
  dtype: LatentSettings['dtype'];
  flip?: boolean;
  device: string;
}

export async function encode(
  { data, vae: address, out, size, batch, shardSize, dtype, flip, device }: EncodeOptions,
  terminal: Terminal,
): Promise<number> {
  setDefaultDevice(device);
  const dataset = await openDataset(data, { size });
  try {
    await ensureWritableFolder(out);
    const message = 'Finishing the batch and writing a shard (again to stop at once).';
    return await interruptible(terminal, message, async (signal) => {
      const vae = (await openVae(address, terminal, signal)) as AutoencoderKL;
      const total = dataset.length;
      const progress = await terminal.progress('Encoding', total);
      const started = performance.now();
      let before: number | undefined;
      const onProgress = ({ done }: { done: number }): void => {
        before ??= done;
        progress.update(done);
      };
      try {
        const images = await encodeLatents({ dataset, vae, out, batch, shardSize, dtype, flip, signal, onProgress });
        const encoded = images - (before ?? 0);
        const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
        terminal.data({ out, images, total, encoded, seconds });
        if (images < total) terminal.note(`Stopped after ${images} of ${total} images. Run it again to go on.`);
        else terminal.print(`${out}: latents of ${images} images, ${encoded} of them in ${seconds} s`);
        return 0;
      } finally {
        progress.stop();
        vae.dispose();
      }
    });
  } finally {
    dataset.close?.();
  }
}
