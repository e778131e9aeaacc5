// ONNX Runtime for React Native, on the CPU.

import * as ort from "onnxruntime-react-native";

/** @typedef {import("./index.js").Tensor} Tensor */
/**
 * @typedef {object} Session
 * @property {import("./index.js").Accelerator} accelerator
 * @property {(inputs: readonly Tensor[]) => Promise<Tensor[]>} run
 * @property {() => void} close
 */

/**
 * @param {Uint8Array} model
 * @param {import("./index.js").Descriptor} descriptor
 * @param {import("./index.js").LoadOptions} options
 * @returns {Promise<Session>}
 */
export async function createSession(model, descriptor, options) {
  const accelerator = options.accelerator ?? "cpu";
  if (accelerator !== "cpu") throw new Error(`this package runs on the CPU, not the ${accelerator}`);
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ["cpu"],
    graphOptimizationLevel: "all",
  });
  return {
    accelerator,
    async run(inputs) {
      /** @type {Record<string, ort.Tensor>} */
      const feeds = {};
      inputs.forEach((input, i) => {
        const name = /** @type {string} */ (descriptor.inputs[i]?.name);
        feeds[name] = new ort.Tensor(/** @type {"float32"} */ (input.dtype), /** @type {Float32Array} */ (input.data), input.shape);
      });
      const outputs = await session.run(feeds);
      return descriptor.outputs.map(({ name }) => {
        const output = outputs[name];
        if (!output) throw new Error(`the model gave no output ${name}`);
        const data = /** @type {import("./index.js").TensorData} */ (output.data);
        return { dtype: output.type, shape: [...output.dims], data };
      });
    },
    close() {
      void session.release();
    },
  };
}
