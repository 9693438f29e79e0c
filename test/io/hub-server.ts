/** A local server that speaks the paths of the Hugging Face hub, with one repository, owner/model, that holds some files. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';

export const commit = 'c'.repeat(40);
export const sha256Of = (content: Uint8Array): string => createHash('sha256').update(content).digest('hex');

export interface Hub {
  endpoint: string;
  /** Range headers of the downloads so far. */
  ranges: string[];
  /** Bytes the next downloads send before the connection breaks; empty: all. */
  cuts: number[];
  /** What the hub says the SHA-256 is, when that is not true. */
  announced?: string;
  /** Status of every answer, when not 200. */
  refuse?: number;
  close(): void;
}

export async function startHub(t: Test, files: Readonly<Record<string, Uint8Array>>): Promise<Hub> {
  const hub: Hub = { endpoint: '', ranges: [], cuts: [], close: () => server.close() };
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    const url = decodeURIComponent(request.url ?? '');
    const [, path = ''] = /^\/owner\/model\/resolve\/(?:main|c{40})\/(.+)$/.exec(url) ?? [];
    if (hub.refuse) response.writeHead(hub.refuse).end('no');
    else if (request.method === 'POST' && /^\/api\/models\/owner\/model\/paths-info\/(main|c{40})$/.test(url)) {
      let body = '';
      request.on('data', (chunk) => (body += chunk));
      request.on('end', () => {
        const [wanted] = JSON.parse(body).paths;
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify(wanted in files ? [describe(wanted)] : []));
      });
    } else if (request.method === 'GET' && path in files) send(request, response, files[path]);
    else response.writeHead(404).end('not found');
  };
  const describe = (path: string): object => {
    const { length: size } = files[path];
    const lfs = { oid: hub.announced ?? sha256Of(files[path]), size, pointerSize: 134 };
    const lastCommit = { id: commit, title: '', date: 0 };
    return { type: 'file', path, size, oid: 'f'.repeat(40), lfs, lastCommit };
  };
  const send = (request: IncomingMessage, response: ServerResponse, content: Uint8Array): void => {
    const { range } = request.headers;
    const [, from = '0', to] = /bytes=(\d+)-(\d*)/.exec(range ?? '') ?? [];
    const last = to ? Number(to) : content.length - 1;
    const probe = range === 'bytes=0-0';
    if (!probe) hub.ranges.push(range ?? 'all');
    const part = content.subarray(Number(from), last + 1);
    response.writeHead(range ? 206 : 200, {
      'content-length': part.length,
      'content-range': `bytes ${from}-${last}/${content.length}`,
      etag: '"x"',
    });
    const cut = probe ? undefined : hub.cuts.shift();
    if (cut === undefined) response.end(part);
    else response.write(part.subarray(0, cut), () => setTimeout(() => response.destroy(), 50));
  };
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  hub.endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  t.teardown(() => server.close());
  return hub;
}
