/**
 * A random part of a square grid of tokens, and attention inside it: what masked training needs (He et al., MAE,
 * arXiv 2111.06377; Gao et al., MDT, arXiv 2303.14389). Every sample has a subset of its own, all of one size.
 */
import { OptionError } from '../errors.js';
import { add, affine, cast, less, sub } from '../ops/elementwise.js';
import { concat, embedding, permute, reshape, slice } from '../ops/index.js';
import { matmul } from '../ops/linear.js';
import { defaultGenerator, type RandomKey } from '../ops/random.js';
import { softmax } from '../ops/reduce.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { HostRandom } from '../random.js';
import { scope } from '../scope.js';
import { type Tensor, type TensorOptions, tensor } from '../tensor.js';

/** The first HostRandom stream (its high word) of the subsets; the words below belong to the data loader. */
const subsetStream = 3;

/** Options of the {@link TokenSubset} constructor. */
export type TokenSubsetOptions = Pick<TensorOptions, 'device'>;
/** Options of {@link TokenSubset.random}. */
export type RandomSubsetOptions = TokenSubsetOptions & Partial<RandomKey>;

const subsetSchema = schema((z, is) =>
  z.strictObject({ device: is.name.optional() } satisfies Fields<TokenSubsetOptions>),
);
const randomSchema = schema((z, is) =>
  z.strictObject({ device: is.name.optional(), ...is.random } satisfies Fields<RandomSubsetOptions>),
);

/**
 * K of the N = side^2 tokens of each of B samples: what masked training keeps (MAE, arXiv 2111.06377; MDT, arXiv 2303.14389). Owns its
 * tensors: dispose it, or make it with `using`.
 */
export class TokenSubset implements Disposable {
  /** i64 [B, K]: row-major positions 0..N-1. */
  readonly positions: Tensor;
  /** i64 [B, K, K]: the relative position table's row for each pair of kept tokens. */
  readonly pairs: Tensor;
  /** i64 [B, K]: the positions as rows of [B N, C]. */
  private readonly rows: Tensor;
  /** i64 [B, N]: which row of the B K kept ones each token is; B K for those left out. */
  private readonly places: Tensor;

  /**
   * @param kept - Positions per sample, in the order in which take() gives them; distinct, equally many.
   * @param side - Tokens along one side of the grid.
   * @throws {OptionError} Positions outside the grid, given twice, or not equally many; an unknown option.
   */
  constructor(
    kept: readonly ArrayLike<number>[],
    /** Tokens along one side of the grid. */
    readonly side: number,
    options: TokenSubsetOptions = {},
  ) {
    const { device } = parseOptions(subsetSchema, options, 'TokenSubset');
    const [batch, count, all] = [kept.length, kept[0]?.length ?? 0, side ** 2];
    const [positions, rows] = [new BigInt64Array(batch * count), new BigInt64Array(batch * count)];
    const places = new BigInt64Array(batch * all).fill(BigInt(batch * count));
    for (const [b, sample] of kept.entries()) {
      for (let i = 0; i < count; i++) {
        const position = sample[i];
        const free = Number.isInteger(position) && position >= 0 && position < all;
        if (sample.length !== count || !free || places[b * all + position] !== BigInt(batch * count)) {
          throw new OptionError(
            `TokenSubset: sample ${b} keeps [${Array.from(sample).join(', ')}], expected ${count} distinct positions in 0..${all - 1}.`,
          );
        }
        positions[b * count + i] = BigInt(position);
        rows[b * count + i] = BigInt(b * all + position);
        places[b * all + position] = BigInt(b * count + i);
      }
    }
    this.positions = tensor(positions, { shape: [batch, count], device });
    this.rows = tensor(rows, { shape: [batch, count], device });
    this.places = tensor(places, { shape: [batch, all], device });
    this.pairs = pairsOf(this.positions, side);
  }

  /**
   * Leaves out a share `ratio` of the tokens of each sample; at least one stays. Sample i of a key gets the same
   * subset in any batch. Without `seed` the default generator gives the next stream.
   *
   * @throws {OptionError} A ratio outside 0 to below 1; an option that is unknown or out of range.
   */
  static random(batch: number, side: number, ratio: number, options: RandomSubsetOptions = {}): TokenSubset {
    const { device, firstSample = 0, ...key } = parseOptions(randomSchema, options, 'TokenSubset.random');
    if (!(ratio >= 0 && ratio < 1)) {
      throw new OptionError(`TokenSubset.random: ratio is ${ratio}, expected a number from 0 to below 1.`);
    }
    const { seed, stream = 0 } = key.seed === undefined ? defaultGenerator.next() : { ...key, seed: key.seed };
    const count = Math.max(1, Math.floor(side ** 2 * (1 - ratio)));
    const kept = Array.from({ length: batch }, (_, b) =>
      new HostRandom(seed, stream + 2 ** 32 * (subsetStream + firstSample + b))
        .permutation(side ** 2)
        .subarray(0, count),
    );
    return new TokenSubset(kept, side, { device });
  }

  /** The kept tokens: x [B, N, C] -> [B, K, C]. */
  take(x: Tensor): Tensor {
    return scope(() => embedding(reshape(x, [-1, x.shape[2]]), this.rows));
  }

  /** The whole grid again: x [B, K, C] at its positions, `blank` (C numbers) everywhere else -> [B, N, C]. */
  restore(x: Tensor, blank: Tensor): Tensor {
    const width = x.shape[2];
    return scope(() => embedding(concat([reshape(x, [-1, width]), reshape(blank, [1, width])], 0), this.places));
  }

  /** f32 [B, N, 1]: 1 at the kept tokens, 0 elsewhere. */
  indicator(): Tensor {
    const [batch, count] = this.positions.shape;
    const end = tensor([batch * count], { dtype: 'i64', device: this.places.device });
    return scope(() => reshape(less(this.places, end), [...this.places.shape, 1]));
  }

  /** Gives the tensors back. */
  dispose(): void {
    for (const part of [this.positions, this.pairs, this.rows, this.places]) part.dispose();
  }

  /** Called at the end of the block by `using subset = …`: {@link TokenSubset.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Token (y, x) has the code y (2 side - 1) + x; a pair's row is the difference of its codes, counted from 0. */
function pairsOf(positions: Tensor, side: number): Tensor {
  const [batch, count] = positions.shape;
  const codes = Float32Array.from({ length: side ** 2 }, (_, i) => Math.floor(i / side) * (side - 1) + i);
  return scope(() => {
    const code = embedding(tensor(codes, { shape: [side ** 2, 1], device: positions.device }), positions);
    const difference = sub(reshape(code, [batch, count, 1]), reshape(code, [batch, 1, count]));
    return cast(affine(difference, 1, 2 * side * (side - 1)), 'i64');
  });
}

/** Arguments of {@link subsetAttention}; as those of the attention operation. */
export interface SubsetAttentionOptions {
  heads: number;
  /** [B, 3C] */
  time?: Tensor;
  /** [(2 side - 1)^2, heads] */
  table?: Tensor;
}

/**
 * The attention operation among the kept tokens, with TokenSubset.pairs: qkv [B, K, 3C] -> [B, K, C]. Written out in plain operations, which
 * store the logits [B, heads, K, K].
 */
export function subsetAttention(qkv: Tensor, pairs: Tensor, { heads, time, table }: SubsetAttentionOptions): Tensor {
  const [batch, count, width] = qkv.shape;
  const dim = width / 3 / heads;
  return scope(() => {
    const conditioned = time ? add(qkv, reshape(time, [batch, 1, width])) : qkv;
    const split = permute(reshape(conditioned, [batch, count, 3, heads, dim]), [2, 0, 3, 1, 4]);
    const [q, k, v] = [0, 1, 2].map((i) => reshape(slice(split, 0, i, i + 1), [batch, heads, count, dim]));
    const logits = affine(matmul(q, k, { transB: true }), 1 / Math.sqrt(dim), 0);
    const bias = table && permute(embedding(table, pairs), [0, 3, 1, 2]);
    const y = matmul(softmax(bias ? add(logits, bias) : logits), v);
    return reshape(permute(y, [0, 2, 1, 3]), [batch, count, width / 3]);
  });
}
