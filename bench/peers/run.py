"""Times PyTorch on the shapes of `diffit bench`, in its JSON.

    diffit bench GROUP --device cuda --dtype bf16 --list --json > specs.json
    python3 bench/peers/run.py --specs specs.json --device cuda --dtype bf16 --out peers.json

Needs PyTorch 2.5 or newer; on a CPU it shows that it runs (--quick) and leaves out what needs Triton.
"""

import argparse
import json
import sys

import torch

import attention
import networks
import operations
from common import Report, Timer

GROUPS = {'copy': operations.time_copy, 'attention': attention.time_spec, 'gemm': operations.time_gemm, 'conv': operations.time_conv,
          'block': networks.time_block, 'model': networks.time_model, 'sampler': networks.time_sampler, 'train': networks.time_train}


def main():
    parser = argparse.ArgumentParser(description='Time PyTorch on the shapes of "diffit bench".')
    parser.add_argument('--specs', required=True, help='what "diffit bench GROUP --list --json" printed')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtype', default='bf16', choices=['f32', 'bf16', 'f16'])
    parser.add_argument('--quick', action='store_true', help='few samples: does it all run?')
    parser.add_argument('--limit', type=float, default=float('inf'), help='seconds after which nothing further is started')
    parser.add_argument('--max-autotune', action='store_true', help="also torch.compile's slowest mode")
    parser.add_argument('--only', action='append', default=[], help='only specs with this in their id; may be given again')
    parser.add_argument('--implementations', help='only the ways whose name begins with this')
    parser.add_argument('--except', dest='left_out', help='without the ways whose name begins with this')
    parser.add_argument('--out', help='file of the JSON report')
    options = parser.parse_args()
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        sys.exit('error: this PyTorch finds no CUDA device.')
    with open(options.specs) as file:
        asked = json.load(file)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    timer = Timer(options.device, options.quick)
    report = Report(asked['group'], options.dtype, options.device, options.quick, options.out, options.limit)
    report.wants = lambda name: name.startswith(options.implementations or '') and not (
        options.left_out and name.startswith(options.left_out))
    more = {'max_autotune': options.max_autotune} if GROUPS[asked['group']].__module__ == 'networks' else {}
    for spec in asked['specs']:
        if options.only and not any(text in spec['id'] for text in options.only):
            continue
        GROUPS[asked['group']](report, timer, spec, options.device, options.dtype, options.quick, **more)
    if not any('ms' in result for result in report.body['results']):
        sys.exit(1)


if __name__ == '__main__':
    main()
