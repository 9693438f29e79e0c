/** Schedules and coefficient tables against DiT (goldens/gaussian_tables) and NumPy (samplers), in float64. */
import t from 'tap';
import { GaussianDiffusion } from '../../lib/diffusion/gaussian.js';
import { cosineBetas, linearBetas, minSnrWeights, respace } from '../../lib/diffusion/schedule.js';
import { assertFails, loadFixture, maxElementError } from '../helpers.js';

const golden = loadFixture('goldens/gaussian_tables.safetensors');
const twin = loadFixture('samplers.safetensors');

t.test('every table of every respacing equals the original', async (t) => {
  const spaced = Object.entries<{ timestep_respacing: string; num_timesteps: number }>(golden.json.config.spaced);
  t.equal(spaced.length, 5);
  for (const [name, { timestep_respacing: respacing, num_timesteps }] of spaced) {
    const diffusion = new GaussianDiffusion({ respacing });
    t.equal(diffusion.numTimesteps, num_timesteps);
    t.strictSame(diffusion.timesteps, Array.from(golden.tensor(`${name}.timesteps`).data, Number), name);
    for (const [ours, theirs] of [
      ['betas', 'betas'],
      ['alphasCumprod', 'alphas_cumprod'],
      ['alphasCumprodPrev', 'alphas_cumprod_prev'],
      ['posteriorVariance', 'posterior_variance'],
      ['posteriorLogVarianceClipped', 'posterior_log_variance_clipped'],
      ['posteriorMeanCoef1', 'posterior_mean_coef1'],
      ['posteriorMeanCoef2', 'posterior_mean_coef2'],
    ] as const) {
      const error = maxElementError(diffusion[ours], golden.tensor(`${name}.${theirs}`).data);
      t.ok(error < 1e-12, `${name}.${theirs}: ${error.toExponential(1)}`);
    }
    t.equal(diffusion.posteriorVariance[0], 0);
  }
});

t.test('betas and loss weights', async (t) => {
  for (const steps of [1000, 50]) {
    t.ok(maxElementError(linearBetas(steps), twin.tensor(`linear.${steps}`).data) < 1e-14, `linear, ${steps}`);
    t.ok(maxElementError(cosineBetas(steps), twin.tensor(`cosine.${steps}`).data) < 1e-10, `cosine, ${steps}`);
  }
  t.equal(Math.max(...cosineBetas(1000)), 0.999);
  const { alphasCumprod } = new GaussianDiffusion();
  t.ok(maxElementError(minSnrWeights(alphasCumprod), twin.tensor('min_snr_5').data) < 1e-12, 'min-SNR');
  t.strictSame(minSnrWeights([0.5, 0.75, 0.9], 1), [1, 1 / 3, (1 - 0.9) / 0.9]);
});

t.test('respacing keeps the timesteps that the original keeps', async (t) => {
  const cases = twin.names('respacing.');
  t.equal(cases.length, 14);
  for (const name of cases) {
    const [steps, respacing] = name.slice('respacing.'.length).split(':');
    t.strictSame(respace(Number(steps), respacing), Array.from(twin.tensor(name).data, Number), name);
  }
  t.strictSame(respace(5, ''), [0, 1, 2, 3, 4]);
});

t.test('what cannot be is one typed error', async (t) => {
  for (const [make, message] of [
    [() => respace(1000, 'abc'), /respacing "abc": expected a count \("250"\)/],
    [() => respace(1000, '10,'), /respacing "10,"/],
    [() => respace(1000, '-5'), /respacing "-5"/],
    [() => respace(1000, '2.5'), /respacing "2.5"/],
    [() => respace(1000, 'ddim'), /respacing "ddim"/],
    [() => respace(1000, 'ddim300'), /no whole stride takes exactly 300 of 1000/],
    [() => respace(1000, 'ddim0'), /no whole stride/],
    [() => respace(1000, '1001'), /1001 timesteps wanted of a section of 1000/],
    [() => respace(1000, '10,400,10'), /400 timesteps wanted of a section of 333/],
    [() => linearBetas(20), /steps is 20, expected an integer above 20/],
    [() => cosineBetas(1), /steps is 1/],
    [() => new GaussianDiffusion({ respacing: '1' }), /respacing "1" keeps 1 timesteps, expected at least 2/],
    [() => new GaussianDiffusion({ respacing: '0' }), /keeps 0 timesteps/],
    [() => new GaussianDiffusion({ steps: 10.5 }), /GaussianDiffusion: steps/],
    [() => new GaussianDiffusion({ schedule: 'sqrt' as never }), /GaussianDiffusion: schedule/],
    [() => new GaussianDiffusion({ weighting: 'min-snr' as never }), /weighting is "min-snr.*", expected "uniform"/],
    [() => new GaussianDiffusion({ weighting: 'min-snr--5' }), /weighting is "min-snr.*", expected "uniform"/],
    [() => new GaussianDiffusion({ weighting: 'min-snr-0' }), /weighting is "min-snr.*", expected "uniform"/],
    [
      () => new GaussianDiffusion({ respacin: '5' } as never),
      /unknown option "respacin" \(did you mean "respacing"\?\)/,
    ],
  ] as const) {
    await assertFails(t, make, 'OptionError', message);
  }
});
