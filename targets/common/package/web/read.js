// Where the package's files come from: here, over HTTP.

/**
 * @param {import("./index.js").LoadOptions} options
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function reader(options) {
  if (options.read) return options.read;
  const base = new URL(options.baseUrl ?? new URL("./assets/", import.meta.url), globalThis.location?.href);
  return async (name) => {
    const url = new URL(name, base);
    const where = "say with baseUrl where the package's assets folder is served";
    const response = await fetch(url).catch((error) => {
      throw new Error(`${url} cannot be fetched (${error instanceof Error ? error.message : error}): ${where}`);
    });
    if (!response.ok) throw new Error(`${url} is answered with ${response.status} ${response.statusText}: ${where}`);
    // Servers of single-page apps answer with their page where there is no file.
    if (response.headers.get("content-type")?.startsWith("text/html")) {
      throw new Error(`${url} is answered with a web page: ${where}`);
    }
    return new Uint8Array(await response.arrayBuffer());
  };
}
