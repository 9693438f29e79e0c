/** Ctrl-C and SIGTERM: the first asks the work to stop in good order, the second ends the process at once. */
import type { Terminal } from './terminal.js';

/** Milliseconds in which a second signal is an echo of the first: npm passes on what the terminal already sent to all. */
const echo = 500;

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
  let first = 0;
  const onSignal = (name: NodeJS.Signals): void => {
    const code = exitCodes[name as keyof typeof exitCodes];
    if (exitCode !== undefined) {
      if (performance.now() - first > echo) process.exit(code);
      return;
    }
    exitCode = code;
    first = performance.now();
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
