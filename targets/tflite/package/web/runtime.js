// LiteRT.js: XNNPACK in WebAssembly on the CPU, WebGPU on the GPU.

import { Tensor as LiteRtTensor, getGlobalLiteRtPromise, loadAndCompile, loadLiteRt } from "@litertjs/core";

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
  if (!getGlobalLiteRtPromise() && !options.wasmUrl) {
    throw new Error("give wasmUrl: where node_modules/@litertjs/core/wasm/ is served");
  }
  await (getGlobalLiteRtPromise() ?? loadLiteRt(/** @type {string} */ (options.wasmUrl)));
  const compiled = await loadAndCompile(model, { accelerator: accelerator === "gpu" ? "webgpu" : "wasm" });
  return {
    accelerator,
    async run(inputs) {
      const fed = inputs.map(
        (t) => new LiteRtTensor(/** @type {Float32Array} */ (t.data), [...t.shape]),
      );
      const outputs = await compiled.run(fed);
      fed.forEach((t) => t.delete());
      return Promise.all(outputs.map((output, i) => read(output, descriptor.outputs[i])));
    },
    close() {
      compiled.delete();
    },
  };
}

/**
 * @param {LiteRtTensor} output
 * @param {import("./index.js").TensorSpec | undefined} spec
 * @returns {Promise<Tensor>}
 */
async function read(output, spec) {
  const here = await output.moveTo("wasm");
  // The array is a view of the runtime's memory, which delete() gives back.
  const data = here.toTypedArray().slice();
  const shape = Array.from(here.type.layout.dimensions);
  if (!here.deleted) here.delete();
  return { dtype: spec ? spec.dtype : here.type.dtype, shape, data };
}
