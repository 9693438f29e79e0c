/** Numbers as people read them, and round ones for the ticks of an axis. */

/** Four significant digits; powers of ten beyond what is easily read. */
export function shortNumber(value: number): string {
  if (!Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e7)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, 'e')
      .replace('e+', 'e');
  if (size >= 1000) return Math.round(value).toLocaleString('en-US');
  return String(Number(value.toPrecision(4)));
}

/** Whole numbers with their thousands apart. */
export function wholeNumber(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** 1234567 as 1.23 M; parameters. */
export function countOf(value: number): string {
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} B`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(0)} k` : wholeNumber(value);
}

/** 1.5 GiB, 320 MiB. */
export function bytesOf(value: number): string {
  if (!Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  const mib = value / 2 ** 20;
  return mib >= 1000 ? `${Number((mib / 1024).toPrecision(3))} GiB` : `${Number(mib.toPrecision(3))} MiB`;
}

/** 2 d 3 h, 1 h 05 min, 3 min 20 s, 12 s. */
export function durationOf(seconds: number): string {
  const whole = Math.round(seconds);
  const [days, hours, minutes] = [
    Math.floor(whole / 86_400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  const two = (value: number): string => String(value).padStart(2, '0');
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${two(minutes)} min`;
  return minutes > 0 ? `${minutes} min ${two(whole % 60)} s` : `${whole} s`;
}

/** About `count` round numbers within [low, high]. */
export function linearTicks(low: number, high: number, count = 5): number[] {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= rough * 0.999) ?? 10;
  const step = factor * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten, with 2 and 5 times them or linear steps where there would be few; at most about `count`. */
export function logTicks(low: number, high: number, count = 6): number[] {
  const powers = (factors: readonly number[], every = 1): number[] => {
    const ticks: number[] = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (power % every !== 0) continue;
      for (const factor of factors) {
        const tick = Number(`${factor}e${power}`);
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    }
    return ticks;
  };
  const decades = Math.log10(high / low);
  if (decades > count) return powers([1], Math.ceil(decades / count));
  const candidates = [powers([1, 2, 5]), powers([1, 3]), powers([1])];
  const fitting = candidates.find((ticks) => ticks.length <= count + 1);
  return fitting && fitting.length >= 3 ? fitting : linearTicks(low, high, count);
}
