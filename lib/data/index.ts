/** Data sets of images and of their latents, and batches of them. */
export { BatchLoader, type Draw, type LoaderOptions, type LoaderState } from './batch-loader.js';
export { type Cifar10Options, openCifar10 } from './cifar10.js';
export { classLabel } from './class-label.js';
export { type ConvertOptions, type ConvertReport, convertDataset } from './convert.js';
export type { Skipped } from './convert-output.js';
export type { SourceKind } from './convert-source.js';
export type { Crop } from './crop.js';
export { type Dataset, MemoryDataset, type OpenDataset, type Sample } from './dataset.js';
export type { EncodedDataset, EncodedOptions } from './encoded.js';
export { openImageFolder } from './image-folder.js';
export { imagenetClasses, imagenetLabel } from './imagenet.js';
export {
  checkShard,
  type LatentIndex,
  type LatentSettings,
  type LatentShard,
  momentNames,
  readLatentIndex,
  writeLatentIndex,
} from './latent-index.js';
export { type LatentBatch, LatentDataset, LatentLoader, openLatents } from './latents.js';
export { type Batch, DataLoader, type DataLoaderOptions, mirror } from './loader.js';
export { type MnistOptions, openMnist, type Split } from './mnist.js';
export { type OpenDatasetOptions, openDataset } from './open.js';
export { openImageZip } from './zip.js';
