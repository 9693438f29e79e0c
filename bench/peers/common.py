"""What the peers share: timing, the JSON that `diffit bench` writes too (lib/bench/report.ts), and files of tensors."""

import datetime
import json
import platform
import struct
import subprocess
import time

import torch

DTYPES = {'f32': torch.float32, 'bf16': torch.bfloat16, 'f16': torch.float16}
# Input sets together are at least this large where they may be, so that no cache holds them; and at most so many.
ROTATION, MAX_SETS = 2**28, 8


class NotMeasured(Exception):
    """Why there is no time, in one sentence."""


class Timer:
    """Medians of events on a GPU, of the host's clock elsewhere; `quick` only shows that it runs."""

    def __init__(self, device, quick):
        self.cuda = device.startswith('cuda')
        self.samples, self.least, self.budget = (3, 2, 0.2) if quick else (30, 20, 3.0) if self.cuda else (20, 3, 4.0)
        self.sample_ms = 0 if quick else 2 if self.cuda else 1
        self.warm_ups = 1 if quick or not self.cuda else 5

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def _times(self, run, count, repeats):
        """Milliseconds of `count` samples of `repeats` runs."""
        if not self.cuda:
            times = []
            for _ in range(count):
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                times.append(1000 * (time.perf_counter() - start))
            return times
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in marks:
            start.record()
            for _ in range(repeats):
                run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in marks]

    def measure(self, run, sets=1, graph=False):
        """`run(set)` for sets in turn. With `graph` one round of all sets is captured and replayed where that works, which takes
        the launches out of the time: each peer at its best."""
        turn = 0

        def step():
            nonlocal turn
            run(turn % sets)
            turn += 1

        rounds, per_run = step, 1
        self._times(step, max(self.warm_ups, sets), 1)
        captured = graph and self.cuda and self._capture(step, sets)
        if captured:
            rounds, per_run = captured.replay, sets
        once = self._times(rounds, 2, 1)[-1]
        repeats = min(200, max(1, -int(-self.sample_ms // max(once, 1e-6))))
        fitting = int(1000 * self.budget / max(once * repeats, 1e-6))
        samples = max(self.least, min(self.samples, fitting))
        times = sorted(t / repeats / per_run for t in self._times(rounds, samples, repeats))
        at = lambda share: times[int(share * (len(times) - 1))] * (1 - share * (len(times) - 1) % 1) + times[
            min(len(times) - 1, int(share * (len(times) - 1)) + 1)] * (share * (len(times) - 1) % 1)
        clock = 'device' if self.cuda else 'host'
        return {'median': at(0.5), 'low': at(0.1), 'high': at(0.9), 'samples': samples, 'repeats': repeats * per_run,
                'clock': clock, 'graph': bool(captured)}

    @staticmethod
    def _capture(step, count):
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(count):
                    step()
            graph.replay()
            torch.cuda.synchronize()
            return graph
        except Exception:  # whatever cannot be captured is timed launch by launch
            torch.cuda.synchronize()
            return None


def sets_for(bytes_of_one, quick):
    return max(1, min(2 if quick else MAX_SETS, -(-ROTATION // max(bytes_of_one, 1))))


class Report:
    """Collects results and rewrites the file after each: what takes the process down costs only that one."""

    def __init__(self, group, dtype, device, quick, path, limit):
        self.path, self.limit, self.started = path, limit, time.monotonic()
        self.wants = lambda implementation: True
        versions = {'torch': torch.__version__, 'python': platform.python_version()}
        info = {'name': device, 'available': True}
        if device.startswith('cuda'):
            about = torch.cuda.get_device_properties(device)
            info |= {'model': about.name, 'variant': f'sm_{about.major}{about.minor}', 'memory': about.total_memory,
                     'threads': about.multi_processor_count}
            versions |= {'cuda': torch.version.cuda, 'driver': said('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')}
            versions['cudnn'] = str(torch.backends.cudnn.version())
            try:
                import triton
                versions['triton'] = triton.__version__
            except ImportError:
                pass
        else:
            info |= {'model': platform.processor() or platform.machine(), 'threads': torch.get_num_threads()}
        self.body = {'schema': 1, 'group': group, 'date': datetime.datetime.now(datetime.timezone.utc).isoformat(),
                     'versions': versions, 'device': info, 'quick': quick, 'dtype': dtype, 'ceilings': None, 'results': []}

    def add(self, spec, implementation, work):
        """Times `work()` -> timing, if the implementation is wanted; a failure becomes the result's sentence."""
        if not self.wants(implementation):
            return
        result = {**spec, 'implementation': implementation, 'dtype': self.body['dtype']}
        if time.monotonic() - self.started > self.limit:
            result['error'] = f'Not measured: the limit of {self.limit:g} s had passed.'
        else:
            try:
                result['ms'] = work()
            except Exception as error:
                lines = str(error).strip().splitlines() or ['']
                named = isinstance(error, NotMeasured)
                result['error'] = lines[0][:300] if named else f'{type(error).__name__}: {lines[0][:300]}'
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        self.body['results'].append(result)
        print(f"{result['id']}  {implementation}: {describe(result)}", flush=True)
        self.write()

    def write(self):
        if self.path:
            with open(self.path, 'w') as file:
                json.dump(self.body, file, indent=2)


def describe(result):
    if 'ms' not in result:
        return result['error']
    ms = result['ms']['median']
    rate = f", {result['bytes'] / ms / 1e6:.1f} GB/s" if result.get('bytes') else ''
    rate += f", {result['flops'] / ms / 1e9:.2f} TFLOP/s" if result.get('flops') else ''
    return f'{ms:.4g} ms{rate}'


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


SAFETENSORS = {'F32': torch.float32, 'BF16': torch.bfloat16, 'F16': torch.float16, 'I64': torch.int64, 'F64': torch.float64}


def read_safetensors(path):
    """Tensors by name and the metadata, without the package of that name."""
    with open(path, 'rb') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(length))
        metadata = header.pop('__metadata__', {})
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        begin, end = entry['data_offsets']
        dtype = SAFETENSORS[entry['dtype']]
        count = (end - begin) // dtype.itemsize
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=begin) if count else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry['shape'])
    return tensors, metadata
