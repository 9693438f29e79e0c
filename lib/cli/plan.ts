/** `diffit train --plan`: what the run would cost, before it starts. */
import { totalmem } from 'node:os';
import { peakFlops } from '../bench/run.js';
import { type Cost, estimateCost, type Processor, type TrainingPlan } from '../train/index.js';
import type { Terminal } from './terminal.js';

/** Its options as commander gives them. */
export interface CostOptions {
  /** A name of train.processors, or "cpu". */
  gpu: string;
  gpus: number;
  utilization?: number;
}

/** Of a CPU, whose peak is measured in registers, more is reached than of a GPU. */
const cpuUtilization = 0.7;

export async function printCost(
  plan: TrainingPlan,
  steps: number | undefined,
  options: CostOptions,
  terminal: Terminal,
) {
  const { gpu, gpus: count } = options;
  const cpu = gpu === 'cpu';
  const processor: string | Processor = cpu ? { flops: await peaks(), memory: totalmem() } : gpu.toLowerCase();
  const utilization = options.utilization ?? (cpu ? cpuUtilization : undefined);
  const images = steps === undefined ? undefined : steps * plan.training.batch;
  const cost = estimateCost(plan, { processor, count, utilization, images });
  terminal.data({ plan, cost });
  for (const line of described(plan, cost, gpu)) terminal.print(line);
}

/** Of this CPU, now. Its bf16 products are widened to f32 where that is faster. */
async function peaks(): Promise<Processor['flops']> {
  const f32 = await peakFlops('cpu', 'fma');
  return { f32, bf16: Math.max(f32, await peakFlops('cpu', 'bf16Dot')) };
}

function described({ kind, training, sampler }: TrainingPlan, cost: Cost, gpu: string): string[] {
  const { memory, microBatch } = cost;
  const share = `${cost.count} x ${gpu} at ${Math.round(100 * cost.utilization)}% of ${amount(cost.processor.flops[training.precision], 'FLOP/s')}`;
  const parts = Math.ceil(training.batch / cost.count / Math.max(1, microBatch.fits));
  return [
    `network     ${kind}, ${(cost.parameters / 1e6).toFixed(1)}M parameters, ${amount(cost.forwardFlops, 'FLOP')} a forward pass of one image`,
    cost.images === undefined
      ? 'training    no length: give --steps, or "images" in the recipe'
      : `training    ${cost.steps} steps of ${training.batch}, ${(cost.images / 1e6).toFixed(1)}M images, ${amount(cost.trainingFlops as number, 'FLOP')}`,
    `memory      ${bytes(memory.parameters)} for weights, gradients, AdamW and the average, ${bytes(memory.perImage)} an image of a step in ${training.precision}`,
    microBatch.fits === 0
      ? `            more than ${gpu} has: ${bytes(cost.processor.memory)}`
      : `            up to ${microBatch.fits} images at once in ${bytes(cost.processor.memory)}${parts > 1 ? `: --micro-batch ${microBatch.fits}` : ''}`,
    `evaluation  ${cost.samples} images of ${cost.evaluations} evaluations (${sampler.kind}, ${sampler.steps} steps), ${amount(cost.samplingFlops, 'FLOP')}`,
    `time        ${share}: training ${cost.trainingSeconds === undefined ? 'unknown' : duration(cost.trainingSeconds)}, evaluation ${duration(cost.samplingSeconds)}`,
    "            An estimate: the peak is the datasheet's (of a CPU, measured now), the share assumed; diffit itself trains on one.",
  ];
}

const prefixes = ['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'];

/** With a prefix of a thousand and three digits. */
function amount(value: number, unit: string): string {
  const power = Math.max(0, Math.min(prefixes.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${(value / 1000 ** power).toPrecision(3)} ${prefixes[power]}${unit}`;
}

const bytes = (value: number): string =>
  value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;

function duration(seconds: number): string {
  if (seconds >= 2 * 86_400) return `${(seconds / 86_400).toFixed(1)} days`;
  if (seconds >= 2 * 3600) return `${(seconds / 3600).toFixed(1)} hours`;
  return seconds >= 120 ? `${(seconds / 60).toFixed(0)} minutes` : `${seconds.toFixed(0)} s`;
}
