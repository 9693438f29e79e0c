/** `diffit report`: a page about a training run, or about several side by side. */
import { OptionError } from '../errors.js';
import { writeReport } from '../train/index.js';
import { openFile } from './open-file.js';
import { ensureWritableFile } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface ReportCommandOptions {
  out?: string;
  /** False with --no-open. */
  open: boolean;
}

export async function report(
  folders: string[],
  { out, open }: ReportCommandOptions,
  terminal: Terminal,
): Promise<number> {
  if (out !== undefined) {
    if (!/\.html?$/i.test(out)) throw new OptionError(`--out ${out} must end in .html.`);
    await ensureWritableFile(out);
  }
  const written = await writeReport(folders, { out });
  terminal.data(written);
  terminal.print(written.path);
  if (open && terminal.watched && !(await openFile(written.path))) {
    terminal.note('There is no program here to open it with; open it in any browser.');
  }
  return 0;
}
