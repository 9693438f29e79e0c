/**
 * Files of the Hugging Face hub, by address: hf://OWNER/NAME[@REVISION]/PATH. They are kept in the hub's own cache
 * (HF_HUB_CACHE, HF_HOME, ~/.cache/huggingface/hub) in its layout, so that Python and this package share downloads:
 *
 *     models--OWNER--NAME/refs/REVISION            the commit a branch was at
 *     models--OWNER--NAME/blobs/ETAG[.incomplete]  contents; a download that was cut goes on from there
 *     models--OWNER--NAME/snapshots/COMMIT/PATH    link to the blob
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, copyFile, open, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DiffitError, FileError, FileFormatError, OptionError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { makeFolder, toFileError } from './files.js';

/** Options of {@link hubFile}. */
export interface HubOptions {
  /** Folder of the cache. Default: the hub's own rules (HF_HUB_CACHE, HF_HOME, ~/.cache/huggingface/hub). */
  cacheDir?: string;
  /** Address of the hub. Default: HF_ENDPOINT, or the public hub. */
  endpoint?: string;
  /** For private and gated repositories. Default: HF_TOKEN. */
  token?: string;
  /** Called as bytes arrive. */
  onProgress?: (progress: { path: string; loadedBytes: number; totalBytes: number }) => void;
  /** Cuts the download; what has come is kept for the next time. */
  signal?: AbortSignal;
}

/** What an hf:// address names. */
export interface HubAddress {
  /** OWNER/NAME. */
  repo: string;
  /** A branch, a tag or a commit; 'main' when the address names none. */
  revision: string;
  /** Of the file in the repository. */
  path: string;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    cacheDir: is.name.optional(),
    endpoint: is.name.optional(),
    token: z.string().optional(),
    onProgress: is.callback<NonNullable<HubOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<HubOptions>),
);

/** How often a connection that breaks is taken up again, and the first wait in ms (doubled each time). */
const attempts = 5;
const firstWait = 250;

/** True for hf:// addresses. */
export function isHubAddress(text: string): boolean {
  return text.startsWith('hf://');
}

/** Parses hf://OWNER/NAME\@REVISION/PATH, where \@REVISION may be left out. Throws OptionError on anything else. */
export function parseHubAddress(address: string): HubAddress {
  const match = /^hf:\/\/([\w.-]+\/[\w.-]+)(?:@([\w.-]+))?\/(.+)$/.exec(address);
  const [, repo, revision = 'main', path] = match ?? [];
  if (!match || path.split('/').some((part) => part === '' || part === '.' || part === '..')) {
    throw new OptionError(
      `${address} is no hub address; expected hf://OWNER/NAME/FILE, or hf://OWNER/NAME@REVISION/FILE.`,
    );
  }
  return { repo, revision, path };
}

/**
 * The local path of a hub file, downloaded unless the cache has it. The size, and the SHA-256 of large files, are
 * checked before the file gets its name. Without a connection, the newest cached copy serves.
 *
 * @throws {OptionError} A bad address; an option that is unknown or of the wrong type.
 * @throws {FileError} The file cannot be had: missing, not permitted, no connection, disk full.
 * @throws {FileFormatError} What arrived is not what the hub announced.
 */
export async function hubFile(address: string, options: HubOptions = {}): Promise<string> {
  parseOptions(optionsSchema, options, 'hubFile');
  const { repo, revision, path } = parseHubAddress(address);
  const { signal } = options;
  const hub = await import('@huggingface/hub');
  const token = options.token ?? process.env.HF_TOKEN;
  const request = {
    repo,
    revision,
    hubUrl: (options.endpoint ?? process.env.HF_ENDPOINT)?.replace(/\/$/, ''),
    ...(token && { accessToken: token }),
    fetch: ((url, init) => fetch(url, { ...init, signal })) as typeof fetch,
  };
  const folder = join(options.cacheDir ?? hub.getHFHubCachePath(), `models--${repo.replace('/', '--')}`);

  const cached = await cachedSnapshot(folder, revision, path);
  if (cached && isCommit(revision)) return cached;
  const found = await hub.pathsInfo({ ...request, paths: [path], expand: true }).catch((error) => {
    signal?.throwIfAborted();
    if (cached && !isAnswer(error)) return undefined; // no connection: the cache serves
    throw hubError(error, address);
  });
  if (found === undefined) return cached as string;
  const [info] = found;
  if (info?.type !== 'file') throw new FileError(`${address} cannot be read: ${repo} has no file ${path}.`, { path });

  const commit = isCommit(revision) ? revision : (info.lastCommit?.id ?? info.oid);
  const etag = info.lfs?.oid ?? info.oid;
  if (!commit || !etag) throw new FileFormatError(`${address}: the hub's answer names no commit.`, { path });
  const pointer = join(folder, 'snapshots', commit, path);
  if (await exists(pointer)) return pointer;
  const blob = join(folder, 'blobs', etag);
  await makeFolder(dirname(blob));
  if (!(await exists(blob))) {
    const source = { size: info.lfs?.size ?? info.size, sha256: info.lfs?.oid };
    const fetchFrom = async (start: number): Promise<ReadableStream<Uint8Array>> => {
      const content = await hub.downloadFile({ ...request, path });
      if (!content) throw new FileError(`${address} cannot be read: the hub has no such file.`, { path });
      return content.slice(start).stream();
    };
    await download(address, blob, source, fetchFrom, options);
  }
  await link(blob, pointer);
  if (!isCommit(revision)) {
    const ref = join(folder, 'refs', revision);
    await makeFolder(dirname(ref));
    await writeFile(ref, commit);
  }
  return pointer;
}

/** Fills `blob` through `blob`.incomplete, going on where an earlier download was cut. */
async function download(
  address: string,
  blob: string,
  { size, sha256 }: { size: number; sha256?: string },
  fetchFrom: (start: number) => Promise<ReadableStream<Uint8Array>>,
  { onProgress, signal }: HubOptions,
): Promise<void> {
  const partial = `${blob}.incomplete`;
  const hash = createHash('sha256');
  let done = await hashExisting(partial, size, hash);
  const append = async (): Promise<void> => {
    const file = await open(partial, 'a');
    try {
      if (done === size) return; // an empty file
      for await (const chunk of await fetchFrom(done)) {
        signal?.throwIfAborted();
        if (done + chunk.byteLength > size)
          throw new FileFormatError(`${address} is longer than announced.`, { path: partial });
        await file.writeFile(chunk);
        hash.update(chunk);
        done += chunk.byteLength;
        onProgress?.({ path: address, loadedBytes: done, totalBytes: size });
      }
    } finally {
      await file.close();
    }
  };
  for (let failures = 0; ; ) {
    const before = done;
    const error = await append().catch((cause: unknown) => toFileError(cause, partial, 'written'));
    signal?.throwIfAborted();
    if (error instanceof FileError || isAnswer(error)) throw hubError(error, address);
    if (error instanceof FileFormatError) await discard(partial, error);
    if (done === size) break;
    failures = done > before ? 0 : failures + 1;
    if (failures === attempts) {
      const message = `${address}: the connection ends after ${done} of ${size} bytes; run it again to go on from there.`;
      throw new FileError(message, { path: partial, cause: error });
    }
    await sleep(firstWait * 2 ** failures, undefined, { signal });
  }
  if (sha256 && hash.digest('hex') !== sha256) {
    const message = `${address} arrived damaged (its SHA-256 is not the hub's) and was removed; run it again.`;
    await discard(partial, new FileFormatError(message, { path: partial }));
  }
  await rename(partial, blob);
}

async function discard(partial: string, error: FileFormatError): Promise<never> {
  await rm(partial, { force: true });
  throw error;
}

/** Bytes of an earlier download, fed to `hash`; a file that is too long to be one is removed. */
async function hashExisting(partial: string, size: number, hash: Hash): Promise<number> {
  const found = await stat(partial).catch(() => undefined);
  if (!found) return 0;
  if (found.size > size) {
    await rm(partial);
    return 0;
  }
  for await (const chunk of createReadStream(partial)) hash.update(chunk);
  return found.size;
}

/** The file as an earlier call left it: of that commit, or of the commit the branch was at. */
async function cachedSnapshot(folder: string, revision: string, path: string): Promise<string | undefined> {
  const ref = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => undefined);
  const pointer = join(folder, 'snapshots', ref?.trim() ?? revision, path);
  return (await exists(pointer)) ? pointer : undefined;
}

/** Makes `pointer` a relative link to `blob`; a copy where links are not permitted. */
async function link(blob: string, pointer: string): Promise<void> {
  await makeFolder(dirname(pointer));
  await rm(pointer, { force: true }); // a link whose blob is gone
  await symlink(relative(dirname(pointer), blob), pointer).catch((error) => {
    if (error.code === 'EPERM') return copyFile(blob, pointer);
    throw toFileError(error, pointer, 'written');
  });
}

const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** True when the hub itself refused, so that asking again will not help. */
function isAnswer(error: unknown): error is Error & { statusCode: number } {
  const { statusCode } = (error ?? {}) as { statusCode?: unknown };
  return typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500;
}

/** What went wrong with a request, as a FileError; our own errors stay as they are. */
function hubError(error: unknown, address: string): unknown {
  if (error instanceof DiffitError) return error;
  const path = address;
  if (isAnswer(error)) {
    const { statusCode } = error;
    const reason =
      statusCode === 401 || statusCode === 403
        ? 'the hub wants a token with access to it (HF_TOKEN)'
        : statusCode === 404
          ? 'the hub has no such repository or revision'
          : `the hub answered ${statusCode}`;
    return new FileError(`${address} cannot be read: ${reason}.`, { path, cause: error });
  }
  return new FileError(`${address} cannot be read: there is no connection to the hub (${(error as Error).message}).`, {
    path,
    cause: error,
  });
}
