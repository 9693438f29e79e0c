/**
 * Drawing one image with a model, step by step: checks what was asked for, waits for its turn, and yields a PNG after every step of the sampler.
 * Nothing stays allocated when it is stopped on the way, and it stops within a step.
 */
import { diffusion, io, models, OptionError, randn, type Tensor, tensor, train } from 'diffit';
import type { Queue } from './queue.js';

/** What a drawing reports. Images are PNG files. */
export type Progress =
  | { event: 'queued'; ahead: number }
  | { event: 'preview' | 'image'; step: number; steps: number; png: Uint8Array };

export interface Artist {
  readonly model: models.ImageDiffiT;
  /** How the model is meant to be sampled, the names of its classes, its configuration. */
  readonly description: train.ModelDescription;
}

/** A longer sampling is refused: a server's time is everybody's. */
export const maxSteps = 100;

/** Loads a model file, or the weights that come with the package. */
export async function loadArtist(checkpoint = train.shippedWeights('mnist')): Promise<Artist> {
  const { model, description } = await train.loadModel(checkpoint);
  if (model instanceof models.ImageDiffiT) return { model, description };
  model.dispose();
  throw new OptionError(`${checkpoint} is a model of latents; this server draws with image-space models.`);
}

/**
 * `asked` is a query or a JSON body: `label` and `seed`, and what train.SamplerOptions has: `steps`, `cfgScale`, `churn`. Before it yields
 * anything, throws OptionError for a wrong option and QueueError when there is no place; later, rejects with the signal's reason.
 */
export async function* draw(
  { model, description }: Artist,
  asked: Record<string, unknown>,
  queue: Queue,
  signal: AbortSignal,
): AsyncGenerator<Progress, void, undefined> {
  const { label, seed = 0, ...options } = numbers(asked);
  const settings = train.parseSampler({ ...description.sampler, ...options }, 'Options');
  train.checkSampler(model, settings);
  if (settings.kind !== 'edm') return; // checkSampler has seen to it; this is for the types
  if (settings.steps > maxSteps)
    throw new OptionError(`Options: steps is ${settings.steps}, at most ${maxSteps} here.`);
  const chosen = train.checkLabels(model, 1, label === undefined ? undefined : [label as number]);
  const { inChannels, imgResolution: side } = model.config;
  using noise = randn([1, inChannels, side, side], { seed: seed as number, stream: 0 });
  using labels = chosen && tensor(BigInt64Array.from(chosen, BigInt));

  using place = queue.join(signal);
  yield { event: 'queued', ahead: place.ahead };
  await place.turn;
  const { kind: _, ...sampler } = settings;
  const run = { ...sampler, labels, seed: seed as number, signal };
  for await (const { step, steps, sample, denoised } of diffusion.sampleEdm(model, noise, run)) {
    const last = step === steps;
    const png = await pngOf(last ? sample : denoised);
    if (last) sample.dispose(); // the last one belongs to whoever asked for it
    yield { event: last ? 'image' : 'preview', step, steps, png };
  }
}

/** One image [1, C, S, S] in [-1, 1] as a PNG file. */
async function pngOf(image: Tensor): Promise<Uint8Array> {
  const [, channels, height, width] = image.shape;
  return io.encodePng({ data: await train.toPixels(image), width, height, channels });
}

/** The values of a query are text: those that are numbers become numbers, others stay, for the error that names them. */
function numbers(asked: Record<string, unknown>): Record<string, unknown> {
  const read = (value: unknown): unknown =>
    typeof value === 'string' && value.trim() !== '' && !Number.isNaN(Number(value)) ? Number(value) : value;
  return Object.fromEntries(Object.entries(asked).map(([name, value]) => [name, read(value)]));
}
