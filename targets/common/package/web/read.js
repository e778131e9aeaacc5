// Where the package's files come from: here, over HTTP.

/**
 * @param {import("./index.js").LoadOptions} options
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function reader(options) {
  if (options.read) return options.read;
  const base = new URL(options.baseUrl ?? new URL("./assets/", import.meta.url), globalThis.location?.href);
  return async (name) => {
    const response = await fetch(new URL(name, base));
    if (!response.ok) throw new Error(`${response.url}: ${response.status} ${response.statusText}`);
    return new Uint8Array(await response.arrayBuffer());
  };
}
