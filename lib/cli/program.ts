/**
 * The commands and their options. Each command's own module is loaded when it runs, so --help is quick. Exit codes: 0,
 * 2 for bad usage, 1 for a failed run, 130 and 143 after Ctrl-C and SIGTERM.
 */
import { Command, CommanderError, Option } from 'commander';
import { DiffitError, OptionError } from '../errors.js';
import { classList, integer, nonNegative } from './arguments.js';
import { packageVersion } from './info.js';
import { type Streams, Terminal } from './terminal.js';

/** Runs one command line (without node and script); resolves with its exit code. Never throws. */
export async function run(argv: readonly string[], streams: Streams): Promise<number> {
  let exitCode = 0;
  const program = createProgram(streams, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    streams.stderr.write(`${describe(error, argv)}\n`);
    return error instanceof OptionError ? 2 : 1;
  }
}

/** One line, or with --verbose the stack. */
function describe(error: unknown, argv: readonly string[]): string {
  if (!(error instanceof Error)) return `error: ${String(error)}`;
  if (argv.includes('--verbose')) return error.stack ?? error.message;
  if (argv.includes('--json')) {
    const code = error instanceof DiffitError ? error.code : undefined;
    return JSON.stringify({ error: { code, message: error.message } });
  }
  return `error: ${error.message.replaceAll('\n', ' ')}`;
}

function createProgram(streams: Streams, onExitCode: (code: number) => void): Command {
  const program = new Command('diffit')
    .description('Diffusion vision transformers: train them, sample from them.')
    .version(packageVersion())
    .enablePositionalOptions() // options of "data encode" are not those of "data"
    .exitOverride()
    .configureOutput({
      writeOut: (text) => streams.stdout.write(text),
      writeErr: (text) => streams.stderr.write(text),
      outputError: (text, write) => write(`${text.trim().replaceAll('\n', ' ')}\n`),
    });

  /** A command with what all have, doing its work in `action`. */
  const command = <T, A = string>(
    name: string,
    description: string,
    action: (options: T, terminal: Terminal, argument: A) => Promise<number>,
    parent = program,
  ): Command =>
    parent
      .command(name)
      .description(description)
      .option('--json', 'print machine-readable JSON on stdout')
      .option('--verbose', 'print a stack trace when something fails')
      .action(async (...given: unknown[]) => {
        const self = given.pop() as Command;
        const options = self.opts<T & { json?: boolean }>();
        onExitCode(await action(options, new Terminal(streams, options.json === true), given[0] as A));
      });

  command('info', 'Say what this installation is and which devices it can use.', async (_, terminal) =>
    (await import('./info.js')).info(terminal),
  );

  command<import('./train.js').TrainOptions>(
    'train',
    'Train a DiffiT, in pixels or in latents.',
    async (options, terminal) => (await import('./train.js')).train(options, terminal),
  )
    .option(
      '--preset <name>',
      'model and settings by name: mnist, cifar10, ffhq64, imagenet256, imagenet512, latent-base, latent-small',
    )
    .option(
      '--recipe <file>',
      "model and settings from a JSON file, or one of the paper's experiments: cifar10, ffhq64, imagenet256, imagenet512",
    )
    .option('--plan', 'print what the run costs, in operations, memory and days, and stop')
    .option('--gpu <name>', 'of --plan: a100, h100, h200, b200, l40s, rtx4090, or "cpu", this one', 'h100')
    .option('--gpus <n>', 'of --plan: how many share the batch', integer(1), 1)
    .option(
      '--utilization <x>',
      'of --plan: share of the peak that is reached (default: 0.35, of a CPU 0.7)',
      nonNegative,
    )
    .option('--data <path>', 'images: a folder, a zip, IDX or CIFAR-10 files, or "mnist"')
    .option('--steps <n>', "optimizer steps in all (default: the recipe's images over its batch)", integer(1))
    .option('--batch <n>', 'images per step', integer(1))
    .option('--micro-batch <n>', 'most images per forward pass; larger batches are accumulated', integer(1))
    .option('--lr <x>', 'peak learning rate', nonNegative)
    .option(
      '--augment <p>',
      "EDM's augmentation of an image-space model's data, with this probability of each transformation; 0: none",
      nonNegative,
    )
    .option(
      '--precision <dtype>',
      "f32 or bf16: matrix products and activations (default: the recipe's; latent presets on a GPU: bf16)",
    )
    .option('--seed <n>', 'names all random numbers of the run', integer(0), 0)
    .option('--device <name>', 'cpu, cuda or cuda:i', 'cpu')
    .option('--checkpoint-every <n>', 'steps between checkpoints', integer(1), 1000)
    .option('--keep <n>', 'newest checkpoints to keep', integer(1), 2)
    .addOption(
      new Option(
        '--non-finite <policy>',
        'a step whose loss or gradients are NaN or infinite: stop, leave it out, or also go back to the last checkpoint',
      )
        .choices(['stop', 'skip', 'rewind'])
        .default('stop'),
    )
    .option(
      '--vae <path>',
      "turns a latent model's samples into images, for --sample-every: a diffusers folder, or hf://OWNER/NAME",
    )
    .option(
      '--sample-every <n>',
      'steps between sample grids; 0 for none (default: 1000; latent models without --vae: 0)',
      integer(0),
    )
    .option('--out <dir>', 'folder of the run', 'out')
    .option('--resume', 'go on from the newest checkpoint in the folder')
    .option('--report', 'keep report.html in the folder: curves, sample grids, settings; see "diffit report"');

  command<import('./report.js').ReportCommandOptions, string[]>(
    'report',
    'Make a page about a training run, or about several side by side, and open it.',
    async (options, terminal, folders) => (await import('./report.js')).report(folders, options, terminal),
  )
    .argument('<dirs...>', 'folders of runs')
    .option('--out <file>', "the HTML file (default: report.html in the run's folder; of several runs, here)")
    .option('--no-open', 'only write it (so it is also where stdout is no terminal)');

  withSampler(
    command<import('./sample.js').SampleOptions>(
      'sample',
      'Make images with a trained model.',
      async (options, terminal) => (await import('./sample.js')).sample(options, terminal),
    )
      .option('--preset <name>', 'a model whose weights come with the package: mnist')
      .option(
        '--checkpoint <file>',
        'a model file, a training checkpoint or released weights; hf://OWNER/NAME/FILE is fetched',
      )
      .option('--vae <path>', "what turns a latent model's output into images: a diffusers folder, or hf://OWNER/NAME")
      .addOption(
        new Option('--weights <dtype>', 'how weights are kept in memory').choices(['f32', 'bf16']).default('f32'),
      )
      .addOption(
        new Option('--precision <dtype>', 'matrix products and activations')
          .choices(['f32', 'bf16', 'f16'])
          .default('f32'),
      )
      .option(
        '--labels <list>',
        "classes, as in 0-9 or 1,3,5, or by name (the training data's, or ImageNet's); each gets a row of the grid",
        classList,
      )
      .option('--class <list>', 'the same as --labels', classList)
      .option('--num <n>', 'images in all (default: 8 per label, or 16)', integer(1)),
  )
    .option('--seed <n>', 'names the images', integer(0), 0)
    .option('--batch <n>', 'images at a time (default: 64, of a latent model 4)', integer(1))
    .option('--device <name>', 'cpu, cuda or cuda:i', 'cpu')
    .option('--out <file>', 'PNG with all images in a grid (default: samples.png)')
    .option('--out-dir <dir>', 'folder for single PNGs')
    .option('--npz <file>', "batch in guided-diffusion's layout: arr_0 uint8 [N, H, W, C], arr_1 labels");

  withSampler(
    command<import('./eval.js').EvalOptions>(
      'eval',
      'Judge images: FID, sFID, Inception Score, precision and recall.',
      async (options, terminal) => (await import('./eval.js')).evaluateImages(options, terminal),
    )
      .option('--samples <path>', 'the images: a .npz (arr_0 uint8 [N, H, W, C]), a folder, a zip')
      .option('--checkpoint <file>', 'or a model that makes them for it; hf://OWNER/NAME/FILE is fetched')
      .option('--preset <name>', 'or one whose weights come with the package: mnist')
      .option('--reference <path>', 'what they are compared with: a .npz with mu and sigma or images, a folder, a zip')
      .option(
        '--extractor <file>',
        "what the metrics are of: Inception's weights (.safetensors; hf://OWNER/NAME/FILE is fetched), or a module with a function",
      )
      .addOption(
        new Option('--resize <mode>', "how images become Inception's 299 pixels")
          .choices(['tensorflow', 'pytorch'])
          .default('tensorflow'),
      )
      .option('--metrics <list>', 'fid, sfid, is, pr (default: all; with a module fid,pr; without a reference is)')
      .option('--num <n>', 'images: the first so many of a file (default: all), or made (default: 50000)', integer(1))
      .option('--size <n>', 'scale and crop images of folders and zips to squares of this side', integer(1))
      .option('--k <n>', "precision and recall: which neighbour's distance is a radius", integer(1), 3)
      .option('--batch <n>', 'images that go through the extractor at a time', integer(1), 32)
      .option('--device <name>', 'cpu, cuda or cuda:i', 'cpu')
      .option('--no-cache', 'compute the statistics of the reference anew, and keep none')
      .option('--out <file>', 'write the JSON report to a file too')
      .option('--vae <path>', "what turns a latent model's output into images: a diffusers folder, or hf://OWNER/NAME")
      .addOption(
        new Option('--weights <dtype>', "how a model's weights are kept").choices(['f32', 'bf16']).default('f32'),
      )
      .addOption(
        new Option('--precision <dtype>', 'in which a model computes; the extractor does in f32')
          .choices(['f32', 'bf16', 'f16'])
          .default('f32'),
      ),
  )
    .option('--seed <n>', 'names the images that are made', integer(0), 0)
    .option('--sample-batch <n>', 'images made at a time (default: 64, of a latent model 4)', integer(1));

  const data = command<import('./data.js').DataOptions>(
    'data',
    'Look at a data set: size, classes, a grid of its images.',
    async (options, terminal, path) => (await import('./data.js')).data(path, options, terminal),
  )
    .argument('<path>', 'a folder of images, a zip, IDX or CIFAR-10 files, or "mnist"')
    .option('--size <n>', 'scale and crop images to squares of this side', integer(1))
    .option('--num <n>', 'images in the grid', integer(1), 64)
    .option('--out <file>', 'PNG with the first images in a grid')
    .enablePositionalOptions();

  command<import('./convert.js').ConvertCommandOptions>(
    'convert',
    'Convert a data set as it is handed out to squares in a zip or .npz; run again, it goes on where it stopped.',
    async (options, terminal, path) => (await import('./convert.js')).convert(path, options, terminal),
    data,
  )
    .argument('<path>', 'a folder or zip of images, ImageNet\'s folder, CIFAR-10\'s .tar.gz, IDX files, or "mnist"')
    .requiredOption('--out <file>', "a .zip in EDM's form, or an .npz in guided-diffusion's")
    .addOption(
      new Option(
        '--as <kind>',
        "what it is: imagenet (256 px, ADM's crop), ffhq (64 px, no labels), cifar10, mnist, or any images",
      ).choices(['images', 'imagenet', 'ffhq', 'cifar10', 'mnist']),
    )
    .option(
      '--size <n>',
      'side of the squares (default: as --as says; images without it must be of one size)',
      integer(1),
    )
    .addOption(
      new Option(
        '--crop <how>',
        "to squares: scale (whatever the proportions), center (EDM's center-crop), or adm (guided-diffusion's; ImageNet)",
      ).choices(['scale', 'center', 'adm']),
    )
    .addOption(
      new Option('--filter <name>', "Pillow's filter that scale and center use")
        .choices(['lanczos', 'bicubic', 'box'])
        .default('lanczos'),
    )
    .addOption(
      new Option('--split <name>', 'of CIFAR-10, MNIST, ImageNet (test: its validation set)').choices([
        'train',
        'test',
      ]),
    )
    .option('--devkit <dir>', "ILSVRC2012_devkit_t12: the classes of ImageNet's validation set")
    .option('--no-labels', 'leave the labels out')
    .option(
      '--skip-broken',
      'leave out images that do not decode, and name them at the end (default: stop at the first)',
    )
    .option('--compression <n>', 'of PNG files, 0 to 9; 0 is the fastest to read', integer(0), 0)
    .option('--threads <n>', 'worker threads that crop (default: one per processor)', integer(1));

  command<import('./encode.js').EncodeOptions>(
    'encode',
    'Encode images to latents, for training latent models; run again, it goes on where it stopped.',
    async (options, terminal) => (await import('./encode.js')).encode(options, terminal),
    data,
  )
    .requiredOption('--data <path>', 'images: a folder, a zip, IDX or CIFAR-10 files, or "mnist"')
    .requiredOption('--vae <path>', 'the autoencoder: a diffusers folder, a .safetensors file, or hf://OWNER/NAME')
    .requiredOption('--out <dir>', 'folder of the latents')
    .option('--size <n>', 'scale and crop images to squares of this side', integer(1), 256)
    .option('--batch <n>', 'images at a time', integer(1), 8)
    .option('--flip', 'encode the mirrored images too')
    .option('--shard-size <n>', 'images per file', integer(1), 4096)
    .addOption(new Option('--dtype <dtype>', 'how latents are stored').choices(['f16', 'bf16', 'f32']).default('f16'))
    .option('--device <name>', 'cpu, cuda or cuda:i', 'cpu');

  command<import('./bench.js').BenchCommandOptions>(
    'bench',
    'Time operations, models, sampling and training on a device, beside what it can do at all.',
    async (options, terminal, group) => (await import('./bench.js')).bench(group, options, terminal),
  )
    .argument('<what>', 'copy, attention, gemm, conv, block, model, sampler or train')
    .option('--device <name>', 'cpu, cuda, cuda:i, or cuda-emulated in a clone', 'cpu')
    .addOption(
      new Option('--dtype <dtype>', 'precision of the arithmetic').choices(['f32', 'bf16', 'f16']).default('f32'),
    )
    .option('--quick', 'the smallest sizes and few samples: does it all run?')
    .option('--only <text>', 'only benchmarks with this in their name')
    .option('--limit <seconds>', 'start no further benchmark after so many seconds', integer(1))
    .option('--list', 'print what would be timed, with sizes, and time nothing')
    .option('--save <file>', 'time nothing; write inputs and results to a safetensors file, to be checked elsewhere')
    .option('--out <file>', 'write the JSON report to a file too');

  return program;
}

/** The options of how a model is sampled, for every command that does. */
function withSampler(command: Command): Command {
  return command
    .addOption(
      new Option('--sampler <name>', 'sampler (default: the model file says)').choices(['edm', 'ddpm', 'ddim', 'dpm']),
    )
    .option('--steps <n>', 'steps of the sampler (default: the model file says)', integer(1))
    .option('--cfg-scale <x>', 'classifier-free guidance; 1 is none (default: the model file says)', nonNegative)
    .option('--churn <x>', 'edm: noise added back on the way; 0 is deterministic', nonNegative)
    .option('--eta <x>', 'ddim: noise of a step; 0 is deterministic', nonNegative);
}
