/** The prebuilds' floor is judged by what objdump prints; a symbol or library beyond it is found. */
import t from 'tap';
import { allowed, atFloor, compareVersions, formerHome, needs, tooNew } from '../../scripts/elf.js';

const symbols = `
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.34) pthread_create
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.4)  __stack_chk_fail
0000000000000000      DO *UND*	0000000000000000 (GLIBCXX_3.4) _ZSt4cout
0000000000000000  w   D  *UND*	0000000000000000  Base        __cxa_finalize
0000000000000000      DF *UND*	0000000000000000  Base        sinf
0000000000000000      D  *UND*	0000000000000000  Base        napi_throw
0000000000001000 g    DF .text	0000000000000010  GLIBC_2.99  defined_here
`;

t.test('what an object needs', async (t) => {
  const needed = needs(symbols, '  NEEDED               libstdc++.so.6\n  NEEDED               libc.so.6\n');
  t.same(needed.versions, ['GLIBCXX_3.4', 'GLIBC_2.34', 'GLIBC_2.4']);
  t.same(tooNew(needed.versions), ['GLIBCXX_3.4', 'GLIBC_2.34']);
  t.same(tooNew(['GLIBC_2.28', 'GCC_3.0']), []);
  t.same(
    needed.libraries.filter((library) => !allowed.test(library)),
    ['libstdc++.so.6'],
  );
  t.same(needed.nobodys, ['sinf']);
  t.ok(compareVersions('GLIBC_2.4', 'GLIBC_2.28') < 0);
});

t.test('symbols of glibc in the versions of the floor', async (t) => {
  const libc = `
0000000000090dd0 g    DF .text	0000000000000029  GLIBC_2.34  sem_wait
0000000000090dd0 g    DF .text	0000000000000029 (GLIBC_2.2.5) sem_wait
000000000002e390  w  iD  .text	0000000000000021  GLIBC_2.2.5 floor
0000000000000001 g    DF .text	0000000000000029  GLIBC_2.36  arc4random
`;
  t.same(atFloor(libc), [
    { name: 'sem_wait', version: 'GLIBC_2.2.5', moved: true },
    { name: 'floor', version: 'GLIBC_2.2.5', moved: false },
  ]);
  t.equal(formerHome('sem_wait'), 'libpthread.so.0');
  t.equal(formerHome('dlopen'), 'libdl.so.2');
  t.equal(formerHome('strlen'), undefined);
});
