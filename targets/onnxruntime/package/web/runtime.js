// ONNX Runtime Web: WebAssembly on the CPU, WebGPU on the GPU.

import * as ort from "onnxruntime-web";

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
  if (accelerator === "gpu" && !(globalThis.navigator && "gpu" in navigator)) {
    throw new Error("this browser has no WebGPU, or not on this page (it needs https or localhost)");
  }
  if (options.wasmUrl) ort.env.wasm.wasmPaths = options.wasmUrl;
  // Threads need SharedArrayBuffer, which only cross-origin isolated pages have.
  if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [accelerator === "gpu" ? "webgpu" : "wasm"],
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
