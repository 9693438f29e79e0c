#!/usr/bin/env node
/** The `diffit` command. */
import { run } from './program.js';

// A reader that has seen enough (diffit info | head -1) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});

process.exitCode = await run(process.argv.slice(2), process);
