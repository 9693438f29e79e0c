/**
 * An image endpoint: a web server that draws with a diffit model and shows every step of the sampling as it happens.
 *
 *     npx tsx server.ts [--checkpoint model.safetensors] [--port 8080] [--device cpu]
 *
 *     GET  /                                      a page to try it with (page.html)
 *     GET  /model                                 classes and settings of the model, and how busy the server is
 *     GET  /images?label=3&seed=1&steps=18        server-sent events: queued, preview after every step, image; or failed
 *     POST /images {"label": 3, "seed": 1}        the PNG
 *
 * One image is drawn at a time (each uses all threads), some requests wait, more are answered 503. A client that goes away stops its drawing
 * within a step. A wrong option is answered 400 with the library's own sentence. SIGTERM and SIGINT: what is being drawn is finished, what waits
 * is told, and the process ends.
 */
import { readFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { DiffitError, setDefaultDevice } from 'diffit';
import fastify, { type FastifyInstance, type FastifyReply } from 'fastify';
import { type Artist, draw, loadArtist, maxSteps, type Progress } from './draw.js';
import { type Limits, Queue, QueueError } from './queue.js';

export interface ServerOptions extends Limits {
  /** Most seconds that one drawing may take, its time in the queue included. */
  seconds: number;
  /** Seconds that a drawing under way is given when the server is closed. */
  grace: number;
}

const defaults: ServerOptions = { running: 1, waiting: 8, seconds: 120, grace: 30 };

/** The server; it owns the model and frees it when it is closed. */
export function imageServer(artist: Artist, options: Partial<ServerOptions> = {}): FastifyInstance {
  const { running, waiting, seconds, grace } = { ...defaults, ...options };
  const queue = new Queue({ running, waiting });
  const closing = new AbortController();
  const app = fastify({ bodyLimit: 4096 });

  /** Aborted when the client goes away, the time is over, or the server has waited long enough for it. */
  const signalOf = (reply: FastifyReply): AbortSignal => {
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort(new Error('The client has gone.')));
    return AbortSignal.any([gone.signal, closing.signal, AbortSignal.timeout(1000 * seconds)]);
  };

  app.get('/', async (_request, reply) => {
    reply.type('text/html; charset=utf-8');
    return readFile(new URL('page.html', import.meta.url));
  });

  app.get('/model', async () => {
    const { numClasses, imgResolution } = artist.model.config;
    const names = artist.description.classNames ?? Array.from({ length: numClasses }, (_, i) => String(i));
    const { sampler } = artist.description;
    return { classes: names, side: imgResolution, sampler, maxSteps, running: queue.running, waiting: queue.waiting };
  });

  app.get('/images', async (request, reply) => {
    const events = draw(artist, request.query as Record<string, unknown>, queue, signalOf(reply));
    reply.raw.once('close', () => void events.return(undefined).catch(() => undefined));
    const first = await events.next(); // what is wrong with the request shows here, while it can be answered with a status
    reply.header('cache-control', 'no-store').header('connection', 'close').type('text/event-stream');
    return reply.send(Readable.from(eventStream(first, events)));
  });

  app.post('/images', async (request, reply) => {
    let image: Uint8Array | undefined;
    const asked = (request.body ?? {}) as Record<string, unknown>;
    for await (const progress of draw(artist, asked, queue, signalOf(reply))) {
      if (progress.event === 'image') image = progress.png;
    }
    reply.header('connection', 'close').type('image/png');
    return reply.send(image);
  });

  app.setErrorHandler((error, _request, reply) => {
    const status = statusOf(error);
    if (status === 503) reply.header('retry-after', '1');
    if (status === 500) console.error(error);
    return reply.status(status).send({ error: status === 500 ? 'The image could not be drawn.' : messageOf(error) });
  });

  app.addHook('preClose', async () => {
    queue.close();
    void sleep(1000 * grace, undefined, { ref: false }).then(() =>
      closing.abort(new QueueError('The server has stopped.')),
    );
  });
  app.addHook('onClose', async () => artist.model.dispose());
  return app;
}

/** Each event as the text/event-stream format has it: a line with its name, one with JSON, an empty one. PNGs become data URLs. */
async function* eventStream(
  first: IteratorResult<Progress, void>,
  events: AsyncGenerator<Progress, void, undefined>,
): AsyncGenerator<string, void, undefined> {
  const written = ({ event, ...data }: Progress): string => {
    const png = 'png' in data ? { png: `data:image/png;base64,${Buffer.from(data.png).toString('base64')}` } : {};
    return `event: ${event}\ndata: ${JSON.stringify({ ...data, ...png })}\n\n`;
  };
  try {
    if (!first.done) yield written(first.value);
    for await (const progress of events) yield written(progress);
  } catch (error) {
    yield `event: failed\ndata: ${JSON.stringify({ error: messageOf(error) })}\n\n`;
  }
}

function statusOf(error: unknown): number {
  if (error instanceof DiffitError) return error.code === 'DIFFIT_OPTION' ? 400 : 500;
  if (error instanceof QueueError) return 503;
  if (error instanceof Error && error.name === 'TimeoutError') return 503;
  return (error as { statusCode?: number }).statusCode ?? 500; // Fastify's own: JSON that is none, too large a body
}

function messageOf(error: unknown): string {
  if (error instanceof Error && error.name === 'TimeoutError') return 'The drawing took too long.';
  return error instanceof Error ? error.message : String(error);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      checkpoint: { type: 'string' },
      port: { type: 'string', default: '8080' },
      device: { type: 'string', default: 'cpu' },
    },
  });
  setDefaultDevice(values.device);
  const app = imageServer(await loadArtist(values.checkpoint));
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => void app.close());
  console.log(`Drawing at ${await app.listen({ port: Number(values.port) })}`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main();
