
export interface LoadOptions {
  /**
   * The package's model file, which the binding loads: what `require()` gives for it, or where it is
   * (`file://…`, `http://…`). Needed, and so is `read`.
   */
  readonly source?: number | { readonly url: string };
}
