// The preprocessing contract of edgekit.json: an RGB image becomes the tensor that the model is fed.
// Same arithmetic, bit for bit, as edgekit/preprocess/contract.py and edgekit/preprocess/resample.py: integer resizing with
// 22-bit weights, then one table of 256 values a channel computed in double precision.

/** @typedef {import("./index.js").Preprocessing} Preprocessing */
/** @typedef {import("./index.js").TensorSpec} TensorSpec */
/** @typedef {import("./index.js").RgbImage} RgbImage */
/** @typedef {{readonly height: number, readonly width: number}} Size */
/** @typedef {{data: Uint8Array, height: number, width: number, channels: number}} Pixels */

const PRECISION_BITS = 22;

/** @type {Record<string, [(x: number) => number, number]>} */
const FILTERS = {
  box: [(x) => (x > -0.5 && x <= 0.5 ? 1 : 0), 0.5],
  bilinear: [(x) => (Math.abs(x) < 1 ? 1 - Math.abs(x) : 0), 1],
  bicubic: [cubic, 2],
};

/** @param {number} x */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

/**
 * The fed tensor for one image, batch of 1.
 * @param {Preprocessing} contract
 * @param {TensorSpec} spec
 * @param {RgbImage} image
 */
export function preprocess(contract, spec, image) {
  const pixels = fitImage(contract, image);
  const { height, width, channels } = pixels;
  const table = lookupTable(contract, spec, channels);
  const fed = newArray(spec.dtype, height * width * channels);
  const plane = height * width;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < channels; c++) {
      const source = contract.color === "bgr" ? channels - 1 - c : c;
      const value = /** @type {number} */ (table[c * 256 + /** @type {number} */ (pixels.data[i * channels + source])]);
      fed[contract.layout === "NCHW" ? c * plane + i : i * channels + c] = value;
    }
  }
  return fed;
}

/**
 * The rectangle that an image fills in the model's input, in pixels of that; it begins outside where it is cropped.
 * @param {Preprocessing} contract
 * @param {Size} image
 */
export function frame(contract, image) {
  const { resize: to, crop } = contract;
  const pads = contract.fit === "pad" && to !== null && typeof to !== "number";
  /** @type {readonly [number, number]} */
  let scaled = [image.height, image.width];
  if (typeof to === "number") scaled = shortestEdge(to, image);
  else if (to !== null) scaled = pads ? inside(to, image) : to;
  const whole = pads ? to : scaled;
  let [top, left] = [Math.floor((whole[0] - scaled[0]) / 2), Math.floor((whole[1] - scaled[1]) / 2)];
  if (crop) {
    top -= offset(whole[0] - crop[0], contract.crop_rounding);
    left -= offset(whole[1] - crop[1], contract.crop_rounding);
  }
  const [inputHeight, inputWidth] = crop ?? whole;
  return { top, left, height: scaled[0], width: scaled[1], inputHeight, inputWidth };
}

/**
 * @param {Preprocessing} contract
 * @param {RgbImage} image
 * @returns {Pixels}
 */
function fitImage(contract, image) {
  let pixels = toPixels(image, contract.color === "gray");
  pixels = resized(contract, pixels);
  return contract.crop ? cropped(pixels, contract.crop, contract.crop_rounding) : pixels;
}

/**
 * @param {RgbImage} image
 * @param {boolean} gray
 * @returns {Pixels}
 */
function toPixels(image, gray) {
  const { width, height, data } = image;
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1) {
    throw new RangeError(`an image of ${width} x ${height} pixels`);
  }
  const stride = data.length / (width * height);
  if (stride !== 3 && stride !== 4) {
    throw new RangeError(`${data.length} bytes are neither RGB nor RGBA of ${width} x ${height} pixels`);
  }
  const channels = gray ? 1 : 3;
  const out = new Uint8Array(width * height * channels);
  for (let i = 0; i < width * height; i++) {
    const r = /** @type {number} */ (data[i * stride]);
    const g = /** @type {number} */ (data[i * stride + 1]);
    const b = /** @type {number} */ (data[i * stride + 2]);
    if (gray) {
      out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    } else {
      out[i * 3] = r;
      out[i * 3 + 1] = g;
      out[i * 3 + 2] = b;
    }
  }
  return { data: out, height, width, channels };
}

/**
 * @param {Preprocessing} contract
 * @param {Pixels} pixels
 * @returns {Pixels}
 */
function resized(contract, pixels) {
  const size = contract.resize;
  if (size === null) return pixels;
  if (typeof size === "number") {
    const [height, width] = shortestEdge(size, pixels);
    return resize(pixels, height, width, contract);
  }
  const [height, width] = size;
  if (contract.fit !== "pad") return resize(pixels, height, width, contract);
  return padded(contract, pixels, height, width);
}

/**
 * @param {number} edge
 * @param {Size} image
 * @returns {[number, number]}
 */
function shortestEdge(edge, { height, width }) {
  return height <= width
    ? [edge, Math.floor((edge * width) / height)]
    : [Math.floor((edge * height) / width), edge];
}

/**
 * The largest size of an image's shape that fits.
 * @param {readonly [number, number]} size
 * @param {Size} image
 * @returns {[number, number]}
 */
function inside([to, across], { height, width }) {
  return across * height <= to * width
    ? [Math.max(1, Math.floor((2 * height * across + width) / (2 * width))), across]
    : [to, Math.max(1, Math.floor((2 * width * to + height) / (2 * height)))];
}

/**
 * @param {Preprocessing} contract
 * @param {Pixels} pixels
 * @param {number} height
 * @param {number} width
 * @returns {Pixels}
 */
function padded(contract, pixels, height, width) {
  const [h, w] = inside([height, width], pixels);
  const inner = resize(pixels, h, w, contract);
  const { channels } = pixels;
  const data = new Uint8Array(height * width * channels).fill(contract.pad_value);
  const [top, left] = [Math.floor((height - h) / 2), Math.floor((width - w) / 2)];
  for (let y = 0; y < h; y++) {
    const row = inner.data.subarray(y * w * channels, (y + 1) * w * channels);
    data.set(row, ((y + top) * width + left) * channels);
  }
  return { data, height, width, channels };
}

/**
 * @param {Pixels} pixels
 * @param {[number, number]} size
 * @param {string} rounding
 * @returns {Pixels}
 */
function cropped(pixels, [height, width], rounding) {
  if (pixels.height < height || pixels.width < width) {
    throw new RangeError(
      `an image of ${pixels.height} x ${pixels.width} is smaller than the crop of ${height} x ${width}`,
    );
  }
  const top = offset(pixels.height - height, rounding);
  const left = offset(pixels.width - width, rounding);
  const { channels } = pixels;
  const data = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    const start = ((y + top) * pixels.width + left) * channels;
    data.set(pixels.data.subarray(start, start + width * channels), y * width * channels);
  }
  return { data, height, width, channels };
}

/**
 * @param {number} margin
 * @param {string} rounding
 */
function offset(margin, rounding) {
  const half = Math.floor(margin / 2);
  return half + (rounding === "half-even" && margin % 2 === 1 ? half % 2 : 0);
}

/**
 * @param {Pixels} pixels
 * @param {number} height
 * @param {number} width
 * @param {Preprocessing} contract
 * @returns {Pixels}
 */
function resize(pixels, height, width, contract) {
  if (contract.filter === "nearest") return nearest(pixels, height, width);
  let out = pixels;
  if (out.width !== width) out = horizontal(out, width, contract);
  if (out.height !== height) out = vertical(out, height, contract);
  return out;
}

/**
 * @param {Pixels} pixels
 * @param {number} height
 * @param {number} width
 * @returns {Pixels}
 */
function nearest(pixels, height, width) {
  const { channels } = pixels;
  const data = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    const sy = Math.floor(((2 * y + 1) * pixels.height) / (2 * height));
    for (let x = 0; x < width; x++) {
      const sx = Math.floor(((2 * x + 1) * pixels.width) / (2 * width));
      for (let c = 0; c < channels; c++) {
        data[(y * width + x) * channels + c] = /** @type {number} */ (
          pixels.data[(sy * pixels.width + sx) * channels + c]
        );
      }
    }
  }
  return { data, height, width, channels };
}

/**
 * For every target position the first source position and the fixed-point weights from there on.
 * @param {number} source
 * @param {number} target
 * @param {Preprocessing} contract
 */
function coefficients(source, target, contract) {
  const found = FILTERS[contract.filter];
  if (!found) throw new RangeError(`unknown filter ${contract.filter}`);
  const [window, radius] = found;
  const scale = source / target;
  const stretch = contract.antialias ? Math.max(scale, 1) : 1;
  const support = radius * stretch;
  const shrink = 1 / stretch;
  /** @type {Array<[number, Int32Array]>} */
  const rows = [];
  for (let i = 0; i < target; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), source);
    const weights = new Float64Array(last - first);
    let total = 0;
    for (let x = 0; x < weights.length; x++) {
      const weight = window((x + first - center + 0.5) * shrink);
      weights[x] = weight;
      total += weight;
    }
    rows.push([first, Int32Array.from(weights, (w) => fixed(total !== 0 ? w / total : w))]);
  }
  return rows;
}

/** @param {number} weight */
function fixed(weight) {
  const scaled = weight * (1 << PRECISION_BITS);
  return Math.trunc(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

/**
 * @param {Pixels} pixels
 * @param {number} width
 * @param {Preprocessing} contract
 * @returns {Pixels}
 */
function horizontal(pixels, width, contract) {
  const { height, channels } = pixels;
  const data = new Uint8ClampedArray(height * width * channels);
  coefficients(pixels.width, width, contract).forEach(([first, weights], x) => {
    for (let y = 0; y < height; y++) {
      const start = (y * pixels.width + first) * channels;
      for (let c = 0; c < channels; c++) {
        data[(y * width + x) * channels + c] = weighted(pixels.data, start + c, channels, weights);
      }
    }
  });
  return { data: new Uint8Array(data.buffer), height, width, channels };
}

/**
 * @param {Pixels} pixels
 * @param {number} height
 * @param {Preprocessing} contract
 * @returns {Pixels}
 */
function vertical(pixels, height, contract) {
  const { width, channels } = pixels;
  const row = width * channels;
  const data = new Uint8ClampedArray(height * row);
  coefficients(pixels.height, height, contract).forEach(([first, weights], y) => {
    for (let i = 0; i < row; i++) data[y * row + i] = weighted(pixels.data, first * row + i, row, weights);
  });
  return { data: new Uint8Array(data.buffer), height, width, channels };
}

/**
 * @param {Uint8Array} data
 * @param {number} start
 * @param {number} step
 * @param {Int32Array} weights
 */
function weighted(data, start, step, weights) {
  let sum = 1 << (PRECISION_BITS - 1);
  for (let k = 0; k < weights.length; k++) {
    sum += /** @type {number} */ (data[start + k * step]) * /** @type {number} */ (weights[k]);
  }
  return sum >> PRECISION_BITS;
}

/**
 * The value of every byte in every channel, in the dtype of the model's input.
 * @param {Preprocessing} contract
 * @param {TensorSpec} spec
 * @param {number} channels
 */
function lookupTable(contract, spec, channels) {
  const table = newArray(spec.dtype, channels * 256);
  const limits = /** @type {Record<string, [number, number]>} */ ({ uint8: [0, 255], int8: [-128, 127] })[spec.dtype];
  for (let c = 0; c < channels; c++) {
    const mean = pick(contract.mean, c);
    const std = pick(contract.std, c);
    for (let v = 0; v < 256; v++) {
      let value = (v * contract.scale - mean) / std;
      if (limits) {
        if (spec.scale !== null) value = roundHalfEven(value / spec.scale) + (spec.zero_point ?? 0);
        value = Math.min(Math.max(roundHalfEven(value), limits[0]), limits[1]);
      }
      table[c * 256 + v] = value;
    }
  }
  return table;
}

/**
 * @param {readonly number[]} values
 * @param {number} channel
 */
function pick(values, channel) {
  return /** @type {number} */ (values.length === 1 ? values[0] : values[channel]);
}

/** @param {number} value */
export function roundHalfEven(value) {
  const down = Math.floor(value);
  const rest = value - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/**
 * @param {string} dtype
 * @param {number} size
 * @returns {Float32Array | Uint8Array | Int8Array}
 */
function newArray(dtype, size) {
  if (dtype === "float32") return new Float32Array(size);
  if (dtype === "uint8") return new Uint8Array(size);
  if (dtype === "int8") return new Int8Array(size);
  throw new TypeError(`images cannot be fed as ${dtype}`);
}
