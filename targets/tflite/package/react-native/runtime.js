// LiteRT through react-native-fast-tflite: the CPU, and the GPU of Android or Core ML.

import { Platform } from "react-native";
import { loadTensorflowModel } from "react-native-fast-tflite";

/** @typedef {import("./index.js").Tensor} Tensor */
/** @typedef {import("./index.js").TensorData} TensorData */
/** @typedef {import("./index.js").TensorSpec} TensorSpec */
/** @typedef {{readonly name: string, readonly dataType: string, readonly shape: readonly number[]}} Port */
/**
 * @typedef {object} Session
 * @property {import("./index.js").Accelerator} accelerator
 * @property {(inputs: readonly Tensor[]) => Promise<Tensor[]>} run
 * @property {() => void} close
 */

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

/**
 * @param {Uint8Array} _model empty: the binding loads the model from `source`
 * @param {import("./index.js").Descriptor} descriptor
 * @param {import("./index.js").LoadOptions} options
 * @returns {Promise<Session>}
 */
export async function createSession(_model, descriptor, options) {
  const accelerator = options.accelerator ?? "cpu";
  const gpu = Platform.OS === "ios" ? /** @type {const} */ ("core-ml") : /** @type {const} */ ("android-gpu");
  const source = /** @type {number | {url: string}} */ (options.source);
  const model = await loadTensorflowModel(source, accelerator === "gpu" ? [gpu] : []);
  const inputs = places("input", descriptor.inputs, model.inputs);
  const outputs = places("output", descriptor.outputs, model.outputs);

  /** @param {readonly Tensor[]} tensors */
  async function once(tensors) {
    /** @type {ArrayBuffer[]} */
    const fed = new Array(tensors.length);
    tensors.forEach(({ data }, i) => {
      // The binding takes whole buffers, and a view may be a part of one.
      const end = data.byteOffset + data.byteLength;
      fed[/** @type {number} */ (inputs[i])] = /** @type {ArrayBuffer} */ (data.buffer.slice(data.byteOffset, end));
    });
    const found = await model.run(fed);
    return descriptor.outputs.map(({ name, dtype }, i) => {
      const place = /** @type {number} */ (outputs[i]);
      const [buffer, port, array] = [found[place], model.outputs[place], ARRAYS[dtype]];
      if (!buffer || !port || !array) throw new Error(`the model gave no output ${name}`);
      // A copy: the binding fills the same buffers at the next call.
      return { dtype, shape: [...port.shape], data: new array(buffer.slice(0)) };
    });
  }

  // One call after the other: they share the interpreter and its buffers.
  /** @type {Promise<unknown>} */
  let last = Promise.resolve();
  return {
    accelerator,
    run(tensors) {
      const result = last.then(() => once(tensors));
      last = result.catch(() => undefined);
      return result;
    },
    close() {
      model.dispose();
    },
  };
}

/**
 * Where the described tensors are in the file, by name, or in order where it has other names.
 * @param {string} kind
 * @param {readonly TensorSpec[]} specs
 * @param {readonly Port[]} ports
 */
function places(kind, specs, ports) {
  const named = specs.map((spec) => ports.findIndex((port) => port.name === spec.name));
  const found = named.includes(-1) ? specs.map((_, i) => i) : named;
  specs.forEach((spec, i) => {
    const port = ports[/** @type {number} */ (found[i])];
    const same =
      port &&
      ports.length === specs.length &&
      port.dataType === spec.dtype &&
      port.shape.length === spec.shape.length &&
      spec.shape.every((d, axis) => typeof d !== "number" || d === port.shape[axis]);
    // Wrong sizes are no error of the binding's: it computes with what it has.
    if (!same) {
      const said = port ? `${port.dataType}[${port.shape}]` : "missing";
      throw new Error(
        `${kind} ${spec.name} is ${said} in the file, and ${spec.dtype}[${spec.shape}] in edgekit.json: ` +
          "is source the model of this package?",
      );
    }
  });
  return found;
}
