/** `diffit data convert`: a data set as it is handed out, to the zip or .npz that training reads. */
import { convertDataset } from '../data/index.js';
import { interruptible } from './interrupt.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface ConvertCommandOptions {
  out: string;
  as?: 'images' | 'imagenet' | 'ffhq' | 'cifar10' | 'mnist';
  size?: number;
  crop?: 'scale' | 'center' | 'adm';
  filter: 'lanczos' | 'bicubic' | 'box';
  split?: 'train' | 'test';
  devkit?: string;
  labels: boolean;
  skipBroken?: boolean;
  compression: number;
  threads?: number;
}

/** Most classes that are listed one by one, and most images that were left out. */
const listed = 20;

export async function convert(path: string, options: ConvertCommandOptions, terminal: Terminal): Promise<number> {
  const { out, as: kind, filter: resampling, labels, skipBroken, ...rest } = options;
  const { size, crop, split, devkit, compression, threads } = rest;
  const message = 'Finishing the images being read (again to stop at once).';
  return await interruptible(terminal, message, async (signal) => {
    let progress: Awaited<ReturnType<Terminal['progress']>> | undefined;
    let [started, before] = [performance.now(), 0];
    // The bar needs the number of images, which comes with the first report.
    let opening: Promise<void> | undefined;
    const onProgress = ({ done, total, skipped }: { done: number; total: number; skipped: number }): void => {
      if (!opening) {
        [started, before] = [performance.now(), done];
        opening = terminal.progress('Converting', total, done).then((made) => {
          progress = made;
        });
      }
      const seconds = (performance.now() - started) / 1000;
      const rate = seconds > 0 ? (done - before) / seconds : 0;
      const left = rate > 0 && !terminal.hasBar ? `, ${duration((total - done) / rate)} left` : '';
      progress?.update(done, `${rate.toFixed(0)} images/s${left}${skipped > 0 ? `, ${skipped} left out` : ''}`);
    };
    try {
      const report = await convertDataset({
        ...{ source: path, out, kind, size, crop, resampling, split, devkit, compression, threads, signal, onProgress },
        labels: labels ? undefined : false,
        onCorrupt: skipBroken ? 'skip' : 'error',
      });
      const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
      terminal.data({ out, ...report, seconds });
      for (const { reason } of report.skipped.slice(0, listed)) terminal.note(reason);
      if (report.skipped.length > listed) terminal.note(`and ${report.skipped.length - listed} more`);
      if (!report.finished) {
        terminal.note(
          `Stopped after ${report.images + report.skipped.length} of ${report.total} images. Run it again to go on.`,
        );
        return 0;
      }
      const { images, imageShape, skipped, classes, mean, std } = report;
      const left = skipped.length > 0 ? `, ${skipped.length} left out` : '';
      terminal.print(`${out}: ${images} images of ${imageShape.join(' x ')} in ${seconds} s${left}`);
      const list = (values: readonly number[]): string => values.map((value) => value.toFixed(2)).join(' ');
      terminal.print(`  mean ${list(mean)}  std ${list(std)}`);
      for (const { label, name, count } of classes.slice(0, listed)) {
        terminal.print(`  ${label}${name === String(label) ? '' : ` ${name}`}: ${count}`);
      }
      if (classes.length > listed) terminal.print(`  and ${classes.length - listed} classes more`);
      return 0;
    } finally {
      await opening;
      progress?.stop();
    }
  });
}

/** 3661 s as "1 h 1 min". */
function duration(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.ceil(whole / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
