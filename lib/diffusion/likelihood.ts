/** Densities of the variational bound, elementwise in nats; shapes broadcast. */
import { add, affine, clamp, less, mul, sub, tanh, where } from '../ops/elementwise.js';
import { scope } from '../scope.js';
import { full, type Tensor } from '../tensor.js';

/** KL(N(mean1, exp(logVariance1)) || N(mean2, exp(logVariance2))). */
export function normalKl(mean1: Tensor, logVariance1: Tensor, mean2: Tensor, logVariance2: Tensor): Tensor {
  return scope(() => {
    const shrink = sub(logVariance1, logVariance2);
    const distance = mul(sub(mean1, mean2).square(), logVariance2.neg().exp());
    return affine(add(sub(shrink.exp(), shrink), distance), 0.5, -0.5);
  });
}

/**
 * -log of the probability that a Gaussian gives to the 1/255-wide bin on either side of x, x in [-1, 1] as 8-bit
 * images are; the first and the last bin reach to infinity (Ho et al. 2020, Eq. 13). Uses the tanh form of the normal
 * distribution function.
 */
export function discretizedGaussianNll(x: Tensor, mean: Tensor, logVariance: Tensor): Tensor {
  return scope(() => {
    const centred = sub(x, mean);
    const inverseStd = affine(logVariance, -0.5, 0).exp();
    const upper = normalCdf(mul(affine(centred, 1, 1 / 255), inverseStd));
    const lower = normalCdf(mul(affine(centred, 1, -1 / 255), inverseStd));
    const logOf = (p: Tensor): Tensor => clamp(p, 1e-12, Number.POSITIVE_INFINITY).log();
    const inner = where(above(x, 0.999), logOf(affine(lower, -1, 1)), logOf(sub(upper, lower)));
    return where(above(x.neg(), 0.999), logOf(upper), inner).neg();
  });
}

/** Phi(x), approximated as in GELU's tanh form. */
function normalCdf(x: Tensor): Tensor {
  const cubic = mul(x, affine(x.square(), 0.044715 * Math.sqrt(2 / Math.PI), Math.sqrt(2 / Math.PI)));
  return affine(tanh(cubic), 0.5, 0.5);
}

/** 1 where x > bound, else 0. */
function above(x: Tensor, bound: number): Tensor {
  return less(full([], bound, { device: x.device }), x);
}
