/** Plain loops in double precision for what is too large for a fixture: values and gradients of sum(out * dout). */

type Values = ArrayLike<number>;

/** a [m, k] b [k, n] -> [m, n]. */
export function matmul(a: Values, b: Values, m: number, k: number, n: number): Float64Array {
  const y = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let l = 0; l < k; l++) {
      const v = a[i * k + l];
      for (let j = 0; j < n; j++) y[i * n + j] += v * b[l * n + j];
    }
  }
  return y;
}

/** [rows, columns] -> [columns, rows]. */
export function transpose<T extends Float32Array | Float64Array>(x: T, rows: number, columns: number): T {
  const y = x.slice() as T;
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) y[j * rows + i] = x[i * columns + j];
  return y;
}

/** Sizes of a convolution: x [b, h, w, i], weight [o, k, k, i]. */
export interface ConvSizes {
  b: number;
  h: number;
  w: number;
  i: number;
  o: number;
  k: number;
  stride: number;
  pad: number;
}

/** conv2d without bias: [b, oh, ow, o], and given dout also dx and dw. */
export function conv2d(
  x: Values,
  weight: Values,
  sizes: ConvSizes,
  dout: Values,
): Record<'y' | 'dx' | 'dw', Float64Array> & { oh: number; ow: number } {
  const { b, h, w, i, o, k, stride, pad } = sizes;
  const [oh, ow] = [h, w].map((n) => Math.floor((n + 2 * pad - k) / stride) + 1);
  const y = new Float64Array(b * oh * ow * o);
  const dx = new Float64Array(b * h * w * i);
  const dw = new Float64Array(o * k * k * i);
  for (let at = 0; at < b * oh * ow; at++) {
    const [sample, row, column] = [Math.floor(at / (oh * ow)), Math.floor(at / ow) % oh, at % ow];
    for (let ky = 0; ky < k; ky++) {
      for (let kx = 0; kx < k; kx++) {
        const [iy, ix] = [row * stride + ky - pad, column * stride + kx - pad];
        if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
        const from = ((sample * h + iy) * w + ix) * i;
        for (let c = 0; c < o; c++) {
          const [to, tap, g] = [at * o + c, ((c * k + ky) * k + kx) * i, dout[at * o + c]];
          let sum = 0;
          for (let l = 0; l < i; l++) {
            sum += x[from + l] * weight[tap + l];
            dx[from + l] += g * weight[tap + l];
            dw[tap + l] += g * x[from + l];
          }
          y[to] += sum;
        }
      }
    }
  }
  return { y, dx, dw, oh, ow };
}

/**
 * Normalisation of sets of elements with weight and bias per channel (channel = position % channels): `setOf` names an
 * element's set. LayerNorm: a set per row; GroupNorm: per sample and group.
 */
export function normalize(
  x: Values,
  { channels, eps, setOf }: { channels: number; eps: number; setOf: (position: number) => number },
  weight: Values,
  bias: Values,
  dout: Values,
): Record<'y' | 'dx' | 'dw' | 'db', Float64Array> {
  const n = x.length;
  const sets = Int32Array.from({ length: n }, (_, p) => setOf(p));
  const count = Math.max(...new Set(sets)) + 1;
  const each = n / count;
  const sum = (value: (p: number) => number): Float64Array => {
    const sums = new Float64Array(count);
    for (let p = 0; p < n; p++) sums[sets[p]] += value(p);
    return sums.map((v) => v / each);
  };
  const mean = sum((p) => x[p]);
  const rstd = sum((p) => (x[p] - mean[sets[p]]) ** 2).map((v) => 1 / Math.sqrt(v + eps));
  const hat = Float64Array.from({ length: n }, (_, p) => (x[p] - mean[sets[p]]) * rstd[sets[p]]);
  const g = Float64Array.from({ length: n }, (_, p) => dout[p] * weight[p % channels]);
  const meanG = sum((p) => g[p]);
  const meanGHat = sum((p) => g[p] * hat[p]);
  const [dw, db] = [new Float64Array(channels), new Float64Array(channels)];
  for (let p = 0; p < n; p++) {
    dw[p % channels] += dout[p] * hat[p];
    db[p % channels] += dout[p];
  }
  return {
    y: hat.map((v, p) => v * weight[p % channels] + bias[p % channels]),
    dx: hat.map((v, p) => rstd[sets[p]] * (g[p] - meanG[sets[p]] - v * meanGHat[sets[p]])),
    dw,
    db,
  };
}

/** Sizes of an attention: qkv [b, h, w, 3 heads d], windows of wh x ww tokens. */
export interface AttentionSizes {
  b: number;
  h: number;
  w: number;
  heads: number;
  d: number;
  wh: number;
  ww: number;
}

/** TMSA's core with time token [b, 3C] and table [rows, heads]. */
export function attention(
  qkv: Values,
  time: Values,
  table: Values,
  { b, h, w, heads, d, wh, ww }: AttentionSizes,
  dy: Values,
): Record<'y' | 'lse' | 'dqkv' | 'dtime' | 'dtable', Float64Array> {
  const c = heads * d;
  const n = wh * ww;
  const scale = 1 / Math.sqrt(d);
  const y = new Float64Array(b * h * w * c);
  const lse = new Float64Array(b * heads * h * w);
  const [dqkv, dtime, dtable] = [qkv, time, table].map((x) => new Float64Array(x.length));
  const [p, dp] = [new Float64Array(n), new Float64Array(n)];
  for (let group = 0; group < b * (h / wh) * (w / ww) * heads; group++) {
    const head = group % heads;
    const window = Math.floor(group / heads);
    const [column, row, sample] = [
      window % (w / ww),
      Math.floor(window / (w / ww)) % (h / wh),
      Math.floor((window * wh * ww) / (h * w)),
    ];
    const token = (i: number): number => (sample * h + row * wh + Math.floor(i / ww)) * w + column * ww + (i % ww);
    const at = (i: number, part: number): number => token(i) * 3 * c + part * c + head * d;
    const t = (part: number): number => sample * 3 * c + part * c + head * d;
    const bias = (i: number, j: number): number =>
      ((Math.floor(i / ww) - Math.floor(j / ww) + wh - 1) * (2 * ww - 1) + ((i % ww) - (j % ww)) + ww - 1) * heads +
      head;
    for (let i = 0; i < n; i++) {
      const [q, to] = [at(i, 0), token(i) * c + head * d];
      let most = Number.NEGATIVE_INFINITY;
      for (let j = 0; j < n; j++) {
        const k = at(j, 1);
        let logit = 0;
        for (let e = 0; e < d; e++) logit += (qkv[q + e] + time[t(0) + e]) * qkv[k + e];
        p[j] = logit * scale + table[bias(i, j)];
        most = Math.max(most, p[j]);
      }
      let total = 0;
      for (let j = 0; j < n; j++) total += Math.exp(p[j] - most);
      lse[(sample * heads + head) * h * w + token(i) - sample * h * w] = most + Math.log(total);
      let mean = 0;
      for (let j = 0; j < n; j++) {
        p[j] = Math.exp(p[j] - most) / total;
        dp[j] = 0;
        const v = at(j, 2);
        for (let e = 0; e < d; e++) {
          const value = qkv[v + e] + time[t(2) + e];
          y[to + e] += p[j] * value;
          dp[j] += dy[to + e] * value;
          dqkv[v + e] += p[j] * dy[to + e];
          dtime[t(2) + e] += p[j] * dy[to + e];
        }
        mean += p[j] * dp[j];
      }
      for (let j = 0; j < n; j++) {
        const ds = p[j] * (dp[j] - mean);
        const k = at(j, 1);
        dtable[bias(i, j)] += ds;
        for (let e = 0; e < d; e++) {
          dqkv[q + e] += scale * ds * qkv[k + e];
          dqkv[k + e] += scale * ds * (qkv[q + e] + time[t(0) + e]);
          dtime[t(0) + e] += scale * ds * qkv[k + e];
        }
      }
    }
  }
  return { y, lse, dqkv, dtime, dtable };
}
