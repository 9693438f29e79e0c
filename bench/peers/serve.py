"""The worker's side of bench/cpu/station.ts: requests and answers as lines of JSON, a stopwatch, memory, files of tensors."""

import json
import os
import resource
import signal
import struct
import sys
import time


def serve(versions, handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to handle
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print
    def say(answer):
        answers.write(json.dumps(answer or {}) + '\n')
        answers.flush()
    say({'versions': versions})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(handlers[request['do']](request))
        except Exception as error:
            lines = str(error).strip().splitlines() or ['']
            say({'error': f'{type(error).__name__}: {lines[0][:300]}'})


def stopwatch(run, request):
    """Milliseconds of each of `iterations` times `repeats` runs, per run."""
    times = []
    for _ in range(request['iterations']):
        start = time.perf_counter()
        for _ in range(request['repeats']):
            run()
        times.append(1000 * (time.perf_counter() - start) / request['repeats'])
    return {'ms': times}


def reset_peak():
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except OSError:
        pass  # then it counts from the process's start


def resident_peak(_):
    try:
        with open('/proc/self/status') as file:
            lines = [line for line in file if line.startswith('VmHWM:')]
        return {'bytes': 1024 * int(lines[0].split()[1])}
    except (OSError, IndexError):
        return {'bytes': 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def write_safetensors(path, arrays):
    """name -> (shape, bytes of float32)."""
    header, end = {}, 0
    for name, (shape, data) in arrays.items():
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for _, data in arrays.values():
            file.write(data)
