/** LabelEmbed: the null class and label dropout. (TimeEmbed is tested inside the models, against PyTorch.) */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { LabelEmbed } from '../../lib/nn/embed.js';
import { manualSeed } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor } from '../../lib/tensor.js';
import { forEachDevice, withoutLeaks } from '../helpers.js';

t.test('labels become the null class in training alone, as often as asked, and its row learns', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      manualSeed(3);
      const [numClasses, dim, dropout, count] = [5, 4, 0.2, 20_000];
      const embed = new LabelEmbed({ numClasses, dim, dropout });
      t.strictSame(embed.weight.shape, [numClasses + 1, dim], 'one row more than classes');
      await scope(async () => {
        const ids = BigInt64Array.from({ length: count }, (_, i) => BigInt(i % numClasses));
        const labels = tensor(ids);
        const table = await embed.weight.data();
        /** The row of the table that each output is; -1 if none. */
        const rowsOf = (y: ArrayLike<number | bigint>): number[] =>
          Array.from({ length: count }, (_, i) => {
            for (let row = 0; row <= numClasses; row++) {
              if ([0, 1, 2, 3].every((k) => y[i * dim + k] === table[row * dim + k])) return row;
            }
            return -1;
          });
        const trained = embed.forward(labels);
        const rows = rowsOf(await trained.data());
        t.ok(
          rows.every((row, i) => row === numClasses || row === Number(ids[i])),
          'a label stays or becomes null',
        );
        const share = rows.filter((row) => row === numClasses).length / count;
        // Four standard deviations of a binomial with 20,000 draws.
        t.ok(Math.abs(share - dropout) < 4 * Math.sqrt((dropout * (1 - dropout)) / count), `${share} of them dropped`);
        trained.sum().backward();
        const gradient = (await embed.weight.grad?.data()) as Float32Array;
        t.equal(
          gradient[numClasses * dim],
          rows.filter((row) => row === numClasses).length,
          'gradient of the null row',
        );
        embed.weight.grad?.dispose();
        const evaluated = noGrad(() => embed.eval().forward(labels));
        t.strictSame(rowsOf(await evaluated.data()), Array.from(ids, Number), 'none in evaluation');
      });
      embed.dispose();
      const plain = new LabelEmbed({ numClasses, dim });
      t.strictSame(plain.weight.shape, [numClasses, dim], 'without dropout there is no null class');
      plain.dispose();
    });
  }),
);
