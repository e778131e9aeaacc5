// Where the package's files come from: React Native has no common way, so the app says.

/**
 * @param {import("./index.js").LoadOptions} options
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function reader(options) {
  const { read, source } = options;
  if (!read) throw new Error("give read: how the app reads a file of the package's assets folder, as bytes");
  if (source === undefined) {
    throw new Error("give source: the package's model file, as require() gives it or as { url }");
  }
  // The binding loads the model itself, from source: its bytes do not come through JavaScript.
  return (name) => (name.startsWith("model/") ? Promise.resolve(new Uint8Array()) : read(name));
}
