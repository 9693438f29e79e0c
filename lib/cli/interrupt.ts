/** Ctrl-C and SIGTERM: the first asks the work to stop in good order, the second ends the process at once. */
import type { Terminal } from './terminal.js';

const exitCodes = { SIGINT: 130, SIGTERM: 143 } as const;

/**
 * Runs `work` with a signal that the first SIGINT or SIGTERM aborts. Resolves with 128 + the signal's number when that
 * happened and `work` returned or gave up because of it, else with what `work` gave: its exit code.
 */
export async function interruptible(
  terminal: Terminal,
  message: string,
  work: (signal: AbortSignal) => Promise<number>,
): Promise<number> {
  const controller = new AbortController();
  let exitCode: number | undefined;
  const onSignal = (name: NodeJS.Signals): void => {
    const code = exitCodes[name as keyof typeof exitCodes];
    if (exitCode !== undefined) process.exit(code);
    exitCode = code;
    terminal.note(message);
    controller.abort();
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  try {
    const code = await work(controller.signal);
    return exitCode ?? code;
  } catch (error) {
    if (exitCode !== undefined && controller.signal.aborted && error === controller.signal.reason) return exitCode;
    throw error;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}
