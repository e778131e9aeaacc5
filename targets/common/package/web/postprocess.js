// What the outputs become, by the contract in edgekit.json: in double, as Python's edgekit does it.

/** @typedef {import("./index.js").Postprocessing} Postprocessing */
/** @typedef {{data: Float32Array, shape: readonly number[]}} Real */

const CLOSE = 1e-5;

/**
 * Probabilities in the scores' order, or six numbers a box: class, score, left, top, right, bottom.
 * @param {Postprocessing} contract
 * @param {Readonly<Record<string, Real>>} outputs
 * @returns {number[]}
 */
export function postprocess(contract, outputs) {
  const scores = /** @type {Real} */ (outputs[contract.output]);
  if (contract.kind !== "boxes") {
    const width = scores.shape[scores.shape.length - 1] ?? 1;
    /** @type {number[]} */
    const found = [];
    for (let i = 0; i < scores.data.length; i += width) {
      for (const v of activated(contract.kind, Array.from(scores.data.subarray(i, i + width)))) found.push(v);
    }
    return found;
  }
  return suppressed(contract, candidates(contract, outputs)).flatMap((c) => [c.index, c.score, ...c.corners]);
}

/**
 * Rows of boxes with their corners in pixels of the image, not beyond its edges.
 * @param {readonly number[]} rows
 * @param {ReturnType<typeof import("./preprocess.js").frame>} frame
 * @param {{readonly height: number, readonly width: number}} image
 */
export function placed(rows, frame, image) {
  return rows.map((value, i) => {
    const column = i % 6;
    if (column < 2) return value;
    return column % 2
      ? within((value * frame.inputHeight - frame.top) * (image.height / frame.height), image.height)
      : within((value * frame.inputWidth - frame.left) * (image.width / frame.width), image.width);
  });
}

/**
 * @param {number} value
 * @param {number} most
 */
function within(value, most) {
  return Math.min(Math.max(value, 0), most);
}

/**
 * Whether a result is the expected one; `unit` is what its values are measured in.
 * @param {readonly number[]} got
 * @param {Float32Array} want
 * @param {number} [unit]
 */
export function close(got, want, unit = 1) {
  return (
    got.length === want.length &&
    got.every((v, i) => Object.is(v, want[i]) || Math.abs(v - /** @type {number} */ (want[i])) <= CLOSE * unit)
  );
}

/**
 * @param {string} kind
 * @param {number[]} values
 */
function activated(kind, values) {
  if (kind === "sigmoid") return values.map((v) => 1 / (1 + Math.exp(-v)));
  if (kind !== "softmax") return values;
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const grown = values.map((v) => Math.exp(v - top));
  const sum = grown.reduce((a, b) => a + b, 0);
  return grown.map((v) => v / sum);
}

/** @typedef {{index: number, score: number, corners: [number, number, number, number]}} Candidate */

/**
 * @param {Postprocessing} contract
 * @param {Readonly<Record<string, Real>>} outputs
 * @returns {Candidate[]}
 */
function candidates(contract, outputs) {
  const boxes = rows(contract, /** @type {Real} */ (outputs[contract.boxes]));
  const both = contract.boxes === contract.output;
  const scores = both ? boxes : rows(contract, /** @type {Real} */ (outputs[contract.output]));
  /** @type {Candidate[]} */
  const found = [];
  for (let i = 0; i < boxes.count; i++) {
    const values = Array.from({ length: scores.width - (both ? 4 : 0) }, (_, c) => scores.at(i, c + (both ? 4 : 0)));
    let [index, score] = [-1, -Infinity];
    activated(contract.activation, values).forEach((v, c) => {
      if (c !== contract.background && v > score) [index, score] = [c, v];
    });
    if (score >= contract.min_score) found.push({ index, score, corners: corners(contract, boxes, i) });
  }
  // sort() is stable: of equal scores the earlier candidate is the better one.
  return found.sort((a, b) => b.score - a.score);
}

/**
 * @param {Postprocessing} contract
 * @param {Real} output
 */
function rows(contract, output) {
  const [a, b] = /** @type {[number, number]} */ (output.shape.slice(-2));
  const [count, width] = contract.columns ? [b, a] : [a, b];
  /** @type {(i: number, j: number) => number} */
  const at = (i, j) => /** @type {number} */ (output.data[contract.columns ? j * count + i : i * width + j]);
  return { count, width, at };
}

/**
 * @param {Postprocessing} contract
 * @param {{at: (i: number, j: number) => number}} boxes
 * @param {number} i
 * @returns {[number, number, number, number]}
 */
function corners(contract, boxes, i) {
  let [a, b, c, d] = [boxes.at(i, 0), boxes.at(i, 1), boxes.at(i, 2), boxes.at(i, 3)];
  if (contract.box_format === "cxcywh") [a, b, c, d] = [a - c / 2, b - d / 2, a + c / 2, b + d / 2];
  else if (contract.box_format === "yxyx") [a, b, c, d] = [b, a, d, c];
  const [height, width] = contract.size;
  return [a / width, b / height, c / width, d / height];
}

/**
 * @param {Postprocessing} contract
 * @param {Candidate[]} best
 */
function suppressed(contract, best) {
  /** @type {Candidate[]} */
  const kept = [];
  for (const candidate of best) {
    if (kept.length === contract.most) break;
    const hidden = kept.some(
      (k) => k.index === candidate.index && overlap(k.corners, candidate.corners) > contract.max_overlap,
    );
    if (!hidden) kept.push(candidate);
  }
  return kept;
}

/**
 * Intersection over union; 0 for boxes without an area.
 * @param {[number, number, number, number]} a
 * @param {[number, number, number, number]} b
 */
function overlap(a, b) {
  const width = Math.max(Math.min(a[2], b[2]) - Math.max(a[0], b[0]), 0);
  const height = Math.max(Math.min(a[3], b[3]) - Math.max(a[1], b[1]), 0);
  const union = area(a) + area(b) - width * height;
  return union > 0 ? (width * height) / union : 0;
}

/** @param {[number, number, number, number]} b */
function area(b) {
  return Math.max(b[2] - b[0], 0) * Math.max(b[3] - b[1], 0);
}
