/** Opens a file in the program the desktop has for it. */
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';

const openers: Partial<Record<NodeJS.Platform, readonly string[]>> = {
  darwin: ['open'],
  win32: ['cmd', '/c', 'start', '""'],
};

/** Milliseconds after which an opener that is still there has not failed. */
const patience = 1000;

/** False when there is no such program, or it says that it failed. Does not wait for the one that shows the file. */
export function openFile(path: string, platform: NodeJS.Platform = process.platform): Promise<boolean> {
  const [command, ...argv] = openers[platform] ?? ['xdg-open'];
  return new Promise((done) => {
    const opener = spawn(command, [...argv, resolve(path)], { stdio: 'ignore', detached: true });
    const timer = setTimeout(() => done(true), patience);
    const settle = (opened: boolean): void => {
      clearTimeout(timer);
      done(opened);
    };
    opener.on('error', () => settle(false));
    opener.on('exit', (code) => settle(code === 0));
    opener.unref();
  });
}
