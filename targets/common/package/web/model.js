// The model with its contract, labels and self-test. What differs between runtimes is in runtime.js.

import { close, placed, postprocess } from "./postprocess.js";
import { frame, preprocess } from "./preprocess.js";
import { reader } from "./read.js";
import { createSession } from "./runtime.js";

/** @typedef {import("./index.js").Descriptor} Descriptor */
/** @typedef {import("./index.js").GoldenCase} GoldenCase */
/** @typedef {import("./index.js").LoadOptions} LoadOptions */
/** @typedef {import("./index.js").RgbImage} RgbImage */
/** @typedef {import("./index.js").Tensor} Tensor */
/** @typedef {import("./index.js").TensorData} TensorData */
/** @typedef {import("./index.js").TensorSpec} TensorSpec */

const SCHEMA = 2;

/** @type {Record<string, new (buffer: ArrayBuffer) => TensorData>} */
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  int8: Int8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
};

export class Model {
  /** @type {Uint8Array} */ #labelBytes;
  /** @type {(name: string) => Promise<Uint8Array>} */ #read;
  /** @type {import("./runtime.js").Session} */ #session;

  /**
   * @param {Descriptor} descriptor
   * @param {Uint8Array} labelBytes
   * @param {(name: string) => Promise<Uint8Array>} read
   * @param {import("./runtime.js").Session} session
   */
  constructor(descriptor, labelBytes, read, session) {
    this.descriptor = descriptor;
    this.labels = text(labelBytes).split("\n").slice(0, -1);
    this.#labelBytes = labelBytes;
    this.#read = read;
    this.#session = session;
  }

  /** @param {LoadOptions} [options] */
  static async load(options = {}) {
    const read = reader(options);
    const descriptor = described(await read("edgekit.json"));
    if (descriptor.schema !== SCHEMA) {
      throw new Error(`edgekit.json has schema ${descriptor.schema}, this package reads ${SCHEMA}`);
    }
    const labels = descriptor.labels ? await read(descriptor.labels.file) : new Uint8Array();
    const [file] = descriptor.files;
    if (!file) throw new Error("edgekit.json names no model");
    const accelerator = options.accelerator ?? "cpu";
    const model = await read(file);
    const session = await createSession(model, descriptor, options).catch((error) => {
      const where = options.wasmUrl ? `; are its WebAssembly files served at ${options.wasmUrl}?` : "";
      throw failed(`the runtime does not load ${file} on the ${accelerator}`, error, where);
    });
    return new Model(descriptor, labels, read, session);
  }

  /** @param {LoadOptions & {accelerators?: readonly import("./index.js").Accelerator[]}} [options] */
  static async loadVerified(options = {}) {
    /** @type {string[]} */
    const refused = [];
    for (const accelerator of options.accelerators ?? /** @type {const} */ (["gpu", "cpu"])) {
      /** @type {Model | undefined} */
      let model;
      try {
        model = await Model.load({ ...options, accelerator });
        // Without golden vectors nothing proves another unit than the one that they were made on.
        if (accelerator === "cpu" && !model.descriptor.golden.cases.length) return model;
        const report = await model.selfTest();
        if (report.passed) return model;
        refused.push(`${accelerator}: ${report.cases.map((c) => c.message).filter(Boolean).join("; ")}`);
      } catch (error) {
        refused.push(`${accelerator}: ${error instanceof Error ? error.message : String(error)}`);
      }
      model?.close();
    }
    throw new Error(`no accelerator passes the self-test. ${refused.join(". ")}`);
  }

  get accelerator() {
    return this.#session.accelerator;
  }

  /** @param {RgbImage} image */
  preprocess(image) {
    const { preprocessing } = this.descriptor;
    if (!preprocessing) throw new Error(`${this.descriptor.name} takes no image; use run()`);
    return preprocess(preprocessing, find(this.descriptor.inputs, preprocessing.input), image);
  }

  /** @param {Readonly<Record<string, TensorData | Tensor>>} inputs */
  async run(inputs) {
    const fed = this.descriptor.inputs.map((spec) => checked(spec, inputs[spec.name]));
    const unknown = Object.keys(inputs).filter((name) => !this.descriptor.inputs.some((spec) => spec.name === name));
    if (unknown.length) {
      const known = this.descriptor.inputs.map((spec) => spec.name).join(", ");
      throw new TypeError(`there is no input ${unknown.join(", ")}; the inputs are ${known}`);
    }
    const outputs = await this.#session.run(fed).catch((error) => {
      throw failed(`the runtime failed while it ran ${this.descriptor.name} on the ${this.accelerator}`, error, "");
    });
    /** @type {Record<string, Tensor>} */
    const named = {};
    this.descriptor.outputs.forEach((spec, i) => {
      const output = outputs[i];
      if (output) named[spec.name] = output;
    });
    return named;
  }

  /** @param {RgbImage} image */
  async predict(image) {
    const { preprocessing } = this.descriptor;
    const data = this.preprocess(image);
    return this.run({ [preprocessing ? preprocessing.input : ""]: data });
  }

  /**
   * @param {RgbImage} image
   * @param {number} [count]
   */
  async classify(image, count = 3) {
    return this.best(await this.predict(image), count);
  }

  /** @param {RgbImage} image */
  async detect(image) {
    return this.boxes(await this.predict(image), image);
  }

  /**
   * @param {Record<string, Tensor>} outputs
   * @param {number} [count]
   */
  best(outputs, count = 3) {
    const scores = this.scores(outputs);
    const output = outputs[this.#contract(false).output];
    if (output && scores.length !== output.shape[output.shape.length - 1]) {
      throw new Error(`the scores of ${this.descriptor.name} are ${scores.length} values in [${output.shape}]: use scores()`);
    }
    return scores
      .map((score, index) => ({ index, label: this.#label(index), score }))
      .sort((a, b) => b.score - a.score || a.index - b.index)
      .slice(0, count);
  }

  /** @param {Record<string, Tensor>} outputs */
  scores(outputs) {
    return this.#result(this.#contract(false), outputs);
  }

  /**
   * @param {Record<string, Tensor>} outputs
   * @param {import("./index.js").ImageSize} [image]
   */
  boxes(outputs, image) {
    const found = this.#result(this.#contract(true), outputs);
    const rows = image ? this.#placed(found, image) : found;
    return Array.from({ length: rows.length / 6 }, (_, i) => {
      const [index, score, left, top, right, bottom] =
        /** @type {[number, number, number, number, number, number]} */ (rows.slice(6 * i, 6 * i + 6));
      return { index, label: this.#label(index), score, left, top, right, bottom };
    });
  }

  async examples() {
    /** @type {import("./index.js").Example[]} */
    const found = [];
    for (const golden of this.descriptor.golden.cases) {
      /** @type {Record<string, Tensor>} */
      const inputs = {};
      for (const file of golden.inputs) inputs[file.name] = await this.#tensor(file);
      const image = golden.image && {
        data: await this.#read(golden.image.file),
        width: golden.image.width,
        height: golden.image.height,
      };
      found.push({ name: golden.name, image, inputs });
    }
    return found;
  }

  async selfTest() {
    if (!this.descriptor.golden.cases.length) {
      throw new Error(`${this.descriptor.name} was packaged without golden vectors: nothing can be tested`);
    }
    const limit = this.descriptor.golden.tolerance[this.accelerator];
    /** @type {import("./index.js").CaseReport[]} */
    const cases = [];
    const labels = await this.#checkLabels();
    if (labels) cases.push({ name: "labels", passed: false, error: 0, limit, message: labels });
    for (const golden of this.descriptor.golden.cases) cases.push(await this.#judge(golden, limit));
    return { passed: cases.every((c) => c.passed), accelerator: this.accelerator, cases };
  }

  close() {
    this.#session.close();
  }

  /**
   * @param {GoldenCase} golden
   * @param {number} limit
   */
  async #judge(golden, limit) {
    /** @type {Record<string, Tensor>} */
    const fed = {};
    for (const file of golden.inputs) fed[file.name] = await this.#tensor(file);
    let message = await this.#checkPreprocessing(golden, fed);
    let error = 0;
    const outputs = await this.run(fed);
    for (const file of golden.outputs) {
      error = Math.max(error, relativeError(outputs[file.name], await this.#tensor(file)));
    }
    if (!message && !(error <= limit)) {
      message = `an output is off by ${error} of its largest value, ${limit} is allowed`;
    }
    if (!message && golden.label) {
      const label = this.best(outputs, 1)[0]?.label;
      if (label !== golden.label) message = `the class is ${label}, expected ${golden.label}`;
    }
    if (!message) message = await this.#checkPostprocessing(golden);
    return { name: golden.name, passed: !message, error, limit, message };
  }

  /**
   * The arithmetic alone, on the stored outputs: what the runtime makes of the inputs is judged by itself.
   * @param {GoldenCase} golden
   */
  async #checkPostprocessing(golden) {
    const { postprocessing } = this.descriptor;
    if (!golden.result || !postprocessing) return "";
    /** @type {Record<string, Tensor>} */
    const stored = {};
    for (const file of golden.outputs) stored[file.name] = await this.#tensor(file);
    const want = await this.#tensor(golden.result);
    const got = this.#result(postprocessing, stored);
    if (!close(got, /** @type {Float32Array} */ (want.data))) {
      return "the outputs do not become what the post-processing contract says";
    }
    if (!golden.placed || !golden.image) return "";
    const where = await this.#tensor(golden.placed);
    const unit = Math.max(golden.image.height, golden.image.width);
    return close(this.#placed(got, golden.image), /** @type {Float32Array} */ (where.data), unit)
      ? ""
      : "the boxes are not where they should be in the image";
  }

  /**
   * @param {readonly number[]} rows
   * @param {import("./index.js").ImageSize} image
   */
  #placed(rows, image) {
    const { name, preprocessing } = this.descriptor;
    if (!preprocessing) throw new Error(`${name} takes no image; use boxes(outputs) alone`);
    return placed(rows, frame(preprocessing, image), image);
  }

  /**
   * @param {import("./index.js").Postprocessing} contract
   * @param {Record<string, Tensor>} outputs
   */
  #result(contract, outputs) {
    /** @type {Record<string, import("./postprocess.js").Real>} */
    const real = {};
    for (const name of new Set([contract.output, ...(contract.kind === "boxes" ? [contract.boxes] : [])])) {
      const output = outputs[name];
      if (!output) throw new Error(`there is no output ${name}`);
      const { scale, zero_point: zero } = find(this.descriptor.outputs, name);
      const data = Float32Array.from(/** @type {ArrayLike<number | bigint>} */ (output.data), (v) =>
        scale === null ? Number(v) : (Number(v) - (zero ?? 0)) * scale,
      );
      real[name] = { data, shape: output.shape };
    }
    return postprocess(contract, real);
  }

  /** @param {boolean} boxes */
  #contract(boxes) {
    const { name, postprocessing } = this.descriptor;
    if (!postprocessing) throw new Error(`${name} has no labels and no post-processing; use run() or predict()`);
    if ((postprocessing.kind === "boxes") !== boxes) {
      throw new Error(boxes ? `${name} gives no boxes; use classify()` : `${name} gives boxes; use detect()`);
    }
    return postprocessing;
  }

  /** @param {number} index */
  #label(index) {
    return this.labels[index] ?? String(index);
  }

  /**
   * @param {GoldenCase} golden
   * @param {Record<string, Tensor>} fed
   */
  async #checkPreprocessing(golden, fed) {
    if (!golden.image || !this.descriptor.preprocessing) return "";
    const data = await this.#read(golden.image.file);
    const got = this.preprocess({ data, width: golden.image.width, height: golden.image.height });
    const want = fed[this.descriptor.preprocessing.input]?.data;
    const same = want && want.length === got.length && got.every((v, i) => Object.is(v, want[i]) || v === want[i]);
    return same ? "" : "the image does not become the tensor that the model was tested with";
  }

  /** @param {import("./index.js").TensorFile} file */
  async #tensor(file) {
    const array = ARRAYS[file.dtype];
    if (!array) throw new TypeError(`${file.file} is ${file.dtype}`);
    const bytes = await this.#read(file.file);
    // A copy: a view may begin where the array's elements cannot.
    return { dtype: file.dtype, shape: file.shape, data: new array(bytes.slice().buffer) };
  }

  async #checkLabels() {
    const { labels } = this.descriptor;
    if (!labels) return "";
    if (this.labels.length !== labels.count) return `${this.labels.length} labels, expected ${labels.count}`;
    // Only pages from a secure context (https or localhost) have it; elsewhere the golden classes must do.
    if (!globalThis.crypto?.subtle) return "";
    const digest = await crypto.subtle.digest("SHA-256", this.#labelBytes.slice());
    const hex = Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
    return hex === labels.sha256 ? "" : `${labels.file} is not the label file of this model`;
  }
}

/**
 * @param {Uint8Array} bytes
 * @returns {Descriptor}
 */
function described(bytes) {
  try {
    return JSON.parse(text(bytes));
  } catch (error) {
    throw failed("edgekit.json is not what the package has", error, "; is the assets folder served at baseUrl?");
  }
}

/**
 * An error in words, with what the runtime threw as its cause: that may be a bare number.
 * @param {string} what
 * @param {unknown} error
 * @param {string} hint
 */
function failed(what, error, hint) {
  const why =
    typeof error === "number"
      ? `it stopped with the number ${error}, as it does out of memory or for an operator that it lacks`
      : error instanceof Error
        ? error.message
        : String(error);
  const wrapped = new Error(`${what}: ${why}${hint}`);
  /** @type {Error & {cause?: unknown}} */ (wrapped).cause = error;
  return wrapped;
}

/**
 * UTF-8, also where there is no TextDecoder (React Native).
 * @param {Uint8Array} bytes
 */
function text(bytes) {
  return decodeURIComponent(Array.from(bytes, (b) => `%${b.toString(16).padStart(2, "0")}`).join(""));
}

/**
 * @param {readonly TensorSpec[]} specs
 * @param {string} name
 */
function find(specs, name) {
  const spec = specs.find((s) => s.name === name);
  if (!spec) throw new Error(`there is no tensor ${name}`);
  return spec;
}

/**
 * @param {TensorSpec} spec
 * @param {TensorData | Tensor | undefined} given
 * @returns {Tensor}
 */
function checked(spec, given) {
  if (!given) throw new TypeError(`input ${spec.name} is missing`);
  const bare = ArrayBuffer.isView(given);
  const data = bare ? given : given.data;
  const shape = bare ? spec.shape.map((d) => (typeof d === "number" ? d : 1)) : given.shape;
  const array = ARRAYS[spec.dtype];
  if (!array || !(data instanceof array)) {
    throw new TypeError(`input ${spec.name} takes ${spec.dtype}, not ${data.constructor.name}`);
  }
  const fits = shape.length === spec.shape.length && spec.shape.every((d, i) => typeof d !== "number" || d === shape[i]);
  if (!fits || data.length !== shape.reduce((a, b) => a * b, 1)) {
    const open = bare && spec.shape.some((d) => typeof d !== "number") ? "; give { dtype, shape, data }" : "";
    throw new RangeError(`input ${spec.name} takes [${spec.shape}], got ${data.length} values as [${shape}]${open}`);
  }
  return { dtype: spec.dtype, shape: [...shape], data };
}

/**
 * @param {Tensor | undefined} actual
 * @param {Tensor} expected
 */
function relativeError(actual, expected) {
  if (!actual || actual.data.length !== expected.data.length) return Infinity;
  let worst = 0;
  let peak = 0;
  for (let i = 0; i < expected.data.length; i++) {
    const [a, e] = [Number(actual.data[i]), Number(expected.data[i])];
    const difference = Object.is(a, e) ? 0 : Math.abs(a - e);
    if (Number.isNaN(difference)) return Infinity;
    worst = Math.max(worst, difference);
    peak = Math.max(peak, Math.abs(e));
  }
  return worst === 0 ? 0 : worst / peak;
}
