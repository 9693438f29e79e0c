/** scripts/ptxas-report.ts reads what the compiler prints, and counts blocks as NVIDIA's occupancy rules do. */
import t from 'tap';
import { blocksPerMultiprocessor, parsePtx, parsePtxas, shorten } from '../../scripts/ptxas-report.js';

t.test('what ptxas -v prints', async (t) => {
  const kernels = parsePtxas(`
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    24 bytes stack frame, 48 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem, 440 bytes cmem[0]
ptxas info    : Compile time = 20.1 ms
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
`);
  t.same(kernels, [
    { name: '_Z1av', arch: '80', spills: 64, stack: 24, shared: 4096, registers: 128 },
    { name: '_Z1bv', arch: '90a', spills: 0, stack: 0, shared: 0, registers: 40 },
  ]);
});

t.test('threads and dynamic shared memory in PTX', async (t) => {
  const about = parsePtx(`
.extern .shared .align 16 .b8 _ZN6sharedE[];
.visible .entry _Z1av(
	.param .u64 p
)
.maxntid 128, 2, 1
{
	mov.u32 %r1, _ZN6sharedE;
}
.visible .entry _Z1bv()
{ ret; }
`);
  t.same(
    [...about],
    [
      ['_Z1av', { threads: 256, dynamic: true }],
      ['_Z1bv', { threads: undefined, dynamic: false }],
    ],
  );
});

t.test('blocks per multiprocessor', async (t) => {
  // The occupancy calculator's figures for 256 threads: 128 registers leave 2 blocks, 64 leave 4, 32 the full 8.
  for (const [registers, blocks] of [
    [128, 2],
    [96, 2],
    [80, 3],
    [64, 4],
    [32, 8],
  ])
    t.equal(blocksPerMultiprocessor('80', { registers, threads: 256, shared: 0 }), blocks, `${registers} registers`);
  // 48 KiB and the block's own 1 KiB fit 3 times into 164 KiB and 4 times into 228 KiB.
  t.equal(blocksPerMultiprocessor('80', { registers: 32, threads: 256, shared: 49_152 }), 3);
  t.equal(blocksPerMultiprocessor('90a', { registers: 32, threads: 256, shared: 49_152 }), 4);
  t.equal(blocksPerMultiprocessor('80', { registers: 32, threads: undefined, shared: 0 }), undefined);
});

t.test('names', async (t) => {
  t.equal(
    shorten('void diffit::(anonymous namespace)::kernel<__nv_bfloat16, (int)72, (bool)1>(float const*, long)'),
    'kernel<bf16, 72, 1>',
  );
  t.equal(shorten('void f<diffit::g(int)::{lambda(long)#1}>(long)'), 'f<g(int)::{lambda(long)#1}>');
});
