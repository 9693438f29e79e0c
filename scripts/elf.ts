/** What a shared library asks of the system it is loaded on, read from what `objdump -T` (symbols) and `objdump -p` (headers) print. */

/** The newest version of each library's symbols that a prebuild may need: what Node's own binaries for Linux need. */
export const floor: Record<string, string> = { GLIBC: '2.28', GCC: '7.0' };

/** Libraries a prebuild may need; Node needs all of them, except librt, a part of glibc. */
export const allowed = /^(lib(c|m|dl|rt|pthread|gcc_s)\.so\.\d|ld-linux-.*)$/;

/** Orders 'GLIBC_2.4' before 'GLIBC_2.28'. */
export function compareVersions(a: string, b: string): number {
  const numbers = (version: string) => version.replace(/^.*_/, '').split('.').map(Number);
  const [x, y] = [numbers(a), numbers(b)];
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    if ((x[i] ?? 0) !== (y[i] ?? 0)) return (x[i] ?? 0) - (y[i] ?? 0);
  }
  return 0;
}

/** Symbol versions and libraries that an object needs; and symbols without a version that are neither weak nor Node's, so nobody's. */
export function needs(
  symbols: string,
  headers: string,
): { versions: string[]; libraries: string[]; nobodys: string[] } {
  const versions = new Set<string>();
  const nobodys: string[] = [];
  for (const line of symbols.split('\n').filter((line) => line.includes('*UND*'))) {
    const [, version, name] = /\(?\b([A-Z]+_[0-9.]+|Base)\)?\s+(\S+)$/.exec(line) ?? [];
    if (version && version !== 'Base') versions.add(version);
    else if (!/ w +D/.test(line)) nobodys.push(name ?? line.trim().split(/\s+/).at(-1)!);
  }
  return {
    versions: [...versions].sort(),
    libraries: [...headers.matchAll(/NEEDED\s+(\S+)/g)].map(([, library]) => library),
    nobodys: nobodys.filter((name) => !/^(napi|node)_/.test(name)),
  };
}

/** Of some versions, those beyond the floor, or of a library that has none (libstdc++: GLIBCXX, CXXABI). */
export function tooNew(versions: string[]): string[] {
  return versions.filter((version) => {
    const limit = floor[version.replace(/_.*$/, '')];
    return limit === undefined || compareVersions(version, limit) > 0;
  });
}

/** The functions of a library of glibc, each in its newest version that is not beyond the floor; with `moved`, whether it has a newer one. */
export function atFloor(symbols: string): { name: string; version: string; moved: boolean }[] {
  const found = new Map<string, string[]>();
  for (const line of symbols.split('\n')) {
    const [, version, name] = /\b(?:DF|iD)\s+\.text\s+\S+\s+\(?(GLIBC_[0-9.]+)\)?\s+(\w+)$/.exec(line) ?? [];
    if (name) found.set(name, [...(found.get(name) ?? []), version]);
  }
  return [...found].flatMap(([name, versions]) => {
    const old = versions.filter((version) => tooNew([version]).length === 0).sort(compareVersions);
    const version = old.at(-1);
    return version ? [{ name, version, moved: old.length < versions.length }] : [];
  });
}

/** The library that had a symbol before glibc 2.34 moved it to libc.so.6, if it is one of those. */
export function formerHome(name: string): string | undefined {
  if (/^_*(pthread|sem)_/.test(name)) return 'libpthread.so.0';
  if (/^dl[a-z]/.test(name)) return 'libdl.so.2';
  if (/^(shm|mq|aio|lio|timer)_/.test(name)) return 'librt.so.1';
  return undefined;
}
