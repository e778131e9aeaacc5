// Where the package's files come from: React Native has no common way, so the app says.

/**
 * @param {import("./index.js").LoadOptions} options
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function reader(options) {
  if (options.read) return options.read;
  throw new Error("give read: how the app reads a file of the package's assets folder, as bytes");
}
