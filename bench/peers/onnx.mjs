/** onnxruntime-node's side of the CPU benchmark (bench/cpu/station.ts): the graph that torch.onnx.export made of the plain module. */
import { createRequire } from 'node:module';
import { readTensors, writeTensors } from '../cpu/files.ts';
import { inTurn, serve, stopwatch } from '../cpu/station.ts';

const require = createRequire(import.meta.url);
const ort = require('onnxruntime-node');
let task;

async function prepare({ graph, inputs, output, threads }) {
  const session = await ort.InferenceSession.create(graph, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: 'sequential',
    graphOptimizationLevel: 'all',
  });
  const given = readTensors(inputs);
  const types = { F32: 'float32', I64: 'int64' };
  const feeds = Object.fromEntries(
    session.inputNames.map((name) => [
      name,
      new ort.Tensor(types[given[name].dtype], given[name].data, given[name].shape),
    ]),
  );
  const run = () => session.run(feeds);
  const { output: y } = await run();
  writeTensors(output, { y: { shape: y.dims, data: y.data } });
  task = { run, session };
}

const { version } = require('onnxruntime-node/package.json');
await serve(
  { onnxruntime: version },
  {
    prepare,
    time: (asked) => stopwatch(inTurn(task.run), asked),
    async release() {
      await task?.session.release();
      task = undefined;
    },
  },
);
