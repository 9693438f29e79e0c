/**
 * Headless Chromium for tests of pages. Where there is none, such a test is skipped with a reason; with CI set, that is a failure,
 * so that no run of CI passes without having looked.
 */
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import type { Browser } from 'playwright-core';
import type { Test } from 'tap';

const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];

/** Of CHROMIUM, or the first of the usual names on the PATH. */
function findChromium(): string | undefined {
  const { CHROMIUM, PATH = '' } = process.env;
  const candidates = CHROMIUM
    ? [CHROMIUM]
    : PATH.split(delimiter).flatMap((folder) => names.map((name) => join(folder, name)));
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** A browser that is closed at the test's end; undefined when there is none, which the test then has said. */
export async function openBrowser(t: Test): Promise<Browser | undefined> {
  const executablePath = findChromium();
  if (executablePath === undefined) {
    const reason = 'no Chromium on the PATH, and CHROMIUM names none';
    if (process.env.CI) t.fail(reason);
    else t.pass('a page in a browser', { skip: reason });
    return undefined;
  }
  const { chromium } = await import('playwright-core');
  // Its sandbox refuses to work for root, which containers often are.
  const browser = await chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] });
  t.teardown(() => browser.close());
  return browser;
}
