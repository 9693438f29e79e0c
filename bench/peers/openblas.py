"""OpenBLAS through numpy's wheel: sgemm of bench/cpu (station.ts says what it is asked)."""

import json
import struct

import numpy

from serve import resident_peak, serve, stopwatch, write_safetensors

tasks = {}


def read(path):
    with open(path, 'rb') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    header.pop('__metadata__', None)
    return {name: numpy.frombuffer(data[slice(*entry['data_offsets'])], numpy.float32).reshape(entry['shape'])
            for name, entry in header.items()}


def prepare(request):
    given = read(request['inputs'])
    a, b = given['a'].copy(), given['b'].copy()
    y = numpy.empty((a.shape[0], b.shape[0]), numpy.float32)
    run = lambda: numpy.matmul(a, b.T, out=y)
    run()
    write_safetensors(request['output'], {'y': (y.shape, y.tobytes())})
    tasks[request['way']] = run


blas = numpy.show_config(mode='dicts')['Build Dependencies']['blas']
if 'openblas' not in blas['name']:
    raise SystemExit(f"numpy was built with {blas['name']}, not with OpenBLAS")
serve({'numpy': numpy.__version__, 'OpenBLAS': blas['version']}, {
    'prepare': prepare,
    'time': lambda request: stopwatch(tasks[request['way']], request),
    'rss': resident_peak,
    'release': lambda _: tasks.clear(),
})
