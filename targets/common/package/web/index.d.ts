/** What edgekit.json says about the model; see README.md. */
export interface Descriptor {
  readonly schema: number;
  readonly name: string;
  readonly version: string;
  readonly target: string;
  readonly files: readonly string[];
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
  readonly preprocessing: Preprocessing | null;
  readonly postprocessing: Postprocessing | null;
  readonly labels: { readonly file: string; readonly count: number; readonly sha256: string; readonly output: string } | null;
  readonly golden: { readonly cases: readonly GoldenCase[]; readonly tolerance: Readonly<Record<Accelerator | "npu", number>> };
}

/** One input or output. A dimension given as a string is dynamic. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly (number | string)[];
  readonly scale: number | null;
  readonly zero_point: number | null;
}

/** How an RGB image becomes the tensor that the model is fed. */
export interface Preprocessing {
  readonly resize: number | readonly [number, number] | null;
  readonly fit: string;
  readonly filter: string;
  readonly antialias: boolean;
  readonly pad_value: number;
  readonly crop: [number, number] | null;
  readonly crop_rounding: string;
  readonly color: string;
  readonly scale: number;
  readonly mean: readonly number[];
  readonly std: readonly number[];
  readonly layout: string;
  readonly dtype: string;
  readonly input: string;
}

/** How the outputs become probabilities, or boxes. */
export interface Postprocessing {
  readonly kind: "none" | "softmax" | "sigmoid" | "boxes";
  readonly output: string;
  readonly boxes: string;
  readonly box_format: string;
  readonly columns: boolean;
  readonly activation: string;
  readonly background: number;
  readonly size: readonly [number, number];
  readonly min_score: number;
  readonly max_overlap: number;
  readonly most: number;
}

export interface TensorFile {
  readonly name: string;
  readonly file: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

export interface GoldenCase {
  readonly name: string;
  readonly inputs: readonly TensorFile[];
  readonly outputs: readonly TensorFile[];
  readonly image: { readonly file: string; readonly height: number; readonly width: number } | null;
  readonly label: string;
  readonly result: TensorFile | null;
  readonly placed: TensorFile | null;
}

/** An image's size in pixels. */
export interface ImageSize {
  readonly width: number;
  readonly height: number;
}

/** RGB or RGBA bytes, row by row (an `ImageData` is one); alpha is ignored. */
export interface RgbImage extends ImageSize {
  readonly data: Uint8Array | Uint8ClampedArray;
}

export type TensorData =
  | Float32Array
  | Float64Array
  | Uint8Array
  | Int8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

export interface Tensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: TensorData;
}

/** `"cpu"` is WebAssembly, `"gpu"` is WebGPU. */
export type Accelerator = "cpu" | "gpu";

export interface LoadOptions {
  /** Where the package's `assets/` folder is served; needed when a bundler moves this code. */
  readonly baseUrl?: string | URL;
  /** Default `"cpu"`. */
  readonly accelerator?: Accelerator;
  /** How to read a file of the `assets/` folder, instead of fetching it. */
  readonly read?: (name: string) => Promise<Uint8Array>;
  /** Folder that the runtime's WebAssembly files are served from. */
  readonly wasmUrl?: string;
}

/** A golden vector's inputs, and the image that they come from where there is one. */
export interface Example {
  readonly name: string;
  readonly image: RgbImage | null;
  readonly inputs: Readonly<Record<string, Tensor>>;
}

export interface CaseReport {
  readonly name: string;
  readonly passed: boolean;
  readonly error: number;
  readonly limit: number;
  readonly message: string;
}

export interface SelfTestReport {
  readonly passed: boolean;
  readonly accelerator: Accelerator;
  readonly cases: readonly CaseReport[];
}

export interface Category {
  readonly index: number;
  readonly label: string;
  readonly score: number;
}

/**
 * One object that was found. Corners are in pixels of the image that was given, and not beyond its edges. Without one they
 * are shares of the model's input: of the image as it was resized and cropped.
 */
export interface Box extends Category {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

export declare class Model {
  private constructor();
  readonly descriptor: Descriptor;
  /** Class names in output order; empty where the model has none. */
  readonly labels: string[];
  readonly accelerator: Accelerator;
  /** Load the model. Rejects when a file is missing or the runtime refuses it. */
  static load(options?: LoadOptions): Promise<Model>;
  /**
   * Load on the first accelerator that passes the self-test: by default WebGPU, then WebAssembly. A package without
   * golden vectors is taken on the CPU, untested.
   */
  static loadVerified(options?: LoadOptions & { accelerators?: readonly Accelerator[] }): Promise<Model>;
  /** The tensor that the model is fed for an image. */
  preprocess(image: RgbImage): Float32Array | Uint8Array | Int8Array;
  /** Run on tensors by input name. A bare array takes the input's declared shape. Throws on a wrong size. */
  run(inputs: Readonly<Record<string, TensorData | Tensor>>): Promise<Record<string, Tensor>>;
  /** Preprocess an image and run. */
  predict(image: RgbImage): Promise<Record<string, Tensor>>;
  /** The best classes of an image, best first. Scores are what `descriptor.postprocessing` makes of the outputs. */
  classify(image: RgbImage, count?: number): Promise<Category[]>;
  /** What a detector finds in an image, best first, in the image's pixels. */
  detect(image: RgbImage): Promise<Box[]>;
  /** The best classes of outputs that `run` gave. */
  best(outputs: Record<string, Tensor>, count?: number): Category[];
  /** Scores of every class, in the order of `labels`. */
  scores(outputs: Record<string, Tensor>): number[];
  /** The boxes of outputs that `run` gave: in pixels of `image`, or else as shares of the model's input. */
  boxes(outputs: Record<string, Tensor>, image?: ImageSize): Box[];
  /** The golden vectors' inputs: something to try the model with. */
  examples(): Promise<Example[]>;
  /** Run the golden vectors on this device and accelerator. Rejects where the package has none. */
  selfTest(): Promise<SelfTestReport>;
  /** Free the runtime's memory. */
  close(): void;
}
