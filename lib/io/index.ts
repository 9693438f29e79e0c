/** Files in and out: safetensors, .npy and .npz, images. */
export type { HostArray, HostDType, HostValues } from './array.js';
export { hostArray, hostValues } from './array.js';
export { fromTensor, type ToTensorOptions, toTensor } from './array-tensor.js';
export type { HubAddress, HubOptions } from './hub.js';
export { hubFile, isHubAddress, parseHubAddress } from './hub.js';
export type { DecodeOptions, GridOptions, Image } from './image.js';
export { encodePng, imageGrid, loadImage, saveImage } from './image.js';
export { type NpyHeader, readNpy, writeNpy } from './npy.js';
export type { ImageNpz, StreamedArray, WriteImageNpzOptions, WriteNpzOptions } from './npz.js';
export { NpzFile, openImageNpz, readNpz, writeImageNpz, writeNpz } from './npz.js';
export type { LoadedTensors, LoadSafetensorsOptions, SaveSafetensorsOptions } from './safetensors.js';
export { forEachTensor, loadSafetensors, readSafetensorsHeader, saveSafetensors } from './safetensors.js';
export type { SafetensorsEntry, SafetensorsHeader } from './safetensors-format.js';
