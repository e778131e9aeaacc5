package @ID@;

import java.nio.ByteBuffer;

/**
 * The preprocessing contract of edgekit.json: an RGB image becomes the tensor that the model is fed.
 *
 * <p>Same arithmetic, bit for bit, as edgekit/preprocess/contract.py and edgekit/preprocess/resample.py: integer resizing
 * with 22-bit weights, then one table of 256 values a channel computed in double precision.
 */
final class Preprocessor {
    private static final int PRECISION_BITS = 22;

    /** An image with {@code channels} bytes a pixel, row by row. */
    private static final class Pixels {
        final byte[] data;
        final int height;
        final int width;
        final int channels;

        Pixels(byte[] data, int height, int width, int channels) {
            this.data = data;
            this.height = height;
            this.width = width;
            this.channels = channels;
        }
    }

    private final ImageContract contract;
    private final TensorSpec spec;
    private final ByteBuffer table;
    private final int element;

    Preprocessor(ImageContract contract, TensorSpec spec) {
        this.contract = contract;
        this.spec = spec;
        this.element = Tensor.width(spec.dtype);
        this.table = lookupTable();
    }

    /** The fed tensor, batch of 1. {@code rgb} has 3 bytes a pixel. */
    Tensor apply(byte[] rgb, int height, int width) {
        if (height < 1 || width < 1 || rgb.length != (long) height * width * 3) {
            throw new IllegalArgumentException(
                    rgb.length + " bytes are no RGB image of " + width + " x " + height + " pixels");
        }
        Pixels pixels = new Pixels(rgb, height, width, 3);
        if (contract.gray) {
            pixels = gray(pixels);
        }
        pixels = resized(pixels);
        if (contract.crop != null) {
            pixels = cropped(pixels, contract.crop[0], contract.crop[1]);
        }
        return fed(pixels);
    }

    /**
     * Where an image lies in the model's input: top, left, height and width of the rectangle that it fills, in pixels
     * of that, then the input's height and width. It begins outside where the image is cropped.
     */
    static int[] frame(ImageContract contract, int height, int width) {
        boolean pads = contract.pad && contract.resize != null;
        int[] scaled = {height, width};
        if (contract.edge > 0) {
            scaled = shortestEdge(contract.edge, height, width);
        } else if (contract.resize != null) {
            scaled = pads ? inside(height, width, contract.resize[0], contract.resize[1]) : contract.resize;
        }
        int[] whole = pads ? contract.resize : scaled;
        int[] size = contract.crop != null ? contract.crop : whole;
        int[] begin = new int[2];
        for (int axis = 0; axis < 2; axis++) {
            begin[axis] = (whole[axis] - scaled[axis]) / 2;
            if (contract.crop != null) {
                begin[axis] -= offset(contract.cropHalfEven, whole[axis] - size[axis]);
            }
        }
        return new int[] {begin[0], begin[1], scaled[0], scaled[1], size[0], size[1]};
    }

    private Tensor fed(Pixels pixels) {
        int plane = pixels.height * pixels.width;
        int channels = pixels.channels;
        ByteBuffer data = Tensor.allocate(plane * channels * element);
        for (int i = 0; i < plane; i++) {
            for (int c = 0; c < channels; c++) {
                int source = contract.bgr ? channels - 1 - c : c;
                int entry = (c * 256 + (pixels.data[i * channels + source] & 0xff)) * element;
                int target = (contract.channelsFirst ? c * plane + i : i * channels + c) * element;
                for (int b = 0; b < element; b++) {
                    data.put(target + b, table.get(entry + b));
                }
            }
        }
        int[] shape = contract.channelsFirst
                ? new int[] {1, channels, pixels.height, pixels.width}
                : new int[] {1, pixels.height, pixels.width, channels};
        return new Tensor(spec.dtype, shape, data);
    }

    private ByteBuffer lookupTable() {
        int channels = contract.gray ? 1 : 3;
        ByteBuffer values = Tensor.allocate(channels * 256 * element);
        for (int c = 0; c < channels; c++) {
            double mean = contract.mean[contract.mean.length == 1 ? 0 : c];
            double std = contract.std[contract.std.length == 1 ? 0 : c];
            for (int v = 0; v < 256; v++) {
                double value = (v * contract.scale - mean) / std;
                int entry = c * 256 + v;
                if (spec.dtype.equals("float32")) {
                    values.putFloat(entry * 4, (float) value);
                } else {
                    values.put(entry, (byte) quantized(value));
                }
            }
        }
        return values;
    }

    private int quantized(double value) {
        boolean signed = spec.dtype.equals("int8");
        double stored = spec.isQuantized() ? Math.rint(value / spec.scale) + spec.zeroPoint : value;
        return (int) Math.min(Math.max(Math.rint(stored), signed ? -128 : 0), signed ? 127 : 255);
    }

    private static Pixels gray(Pixels in) {
        byte[] out = new byte[in.height * in.width];
        for (int i = 0; i < out.length; i++) {
            int r = in.data[3 * i] & 0xff;
            int g = in.data[3 * i + 1] & 0xff;
            int b = in.data[3 * i + 2] & 0xff;
            out[i] = (byte) ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16);
        }
        return new Pixels(out, in.height, in.width, 1);
    }

    private Pixels resized(Pixels in) {
        if (contract.edge > 0) {
            int[] size = shortestEdge(contract.edge, in.height, in.width);
            return resize(in, size[0], size[1]);
        }
        if (contract.resize == null) {
            return in;
        }
        int height = contract.resize[0];
        int width = contract.resize[1];
        return contract.pad ? padded(in, height, width) : resize(in, height, width);
    }

    private static int[] shortestEdge(int edge, int height, int width) {
        return height <= width
                ? new int[] {edge, (int) ((long) edge * width / height)}
                : new int[] {(int) ((long) edge * height / width), edge};
    }

    /** The largest size of an image's shape that fits. */
    private static int[] inside(int height, int width, int toHeight, int toWidth) {
        if ((long) toWidth * height <= (long) toHeight * width) {
            return new int[] {(int) Math.max(1, (2L * height * toWidth + width) / (2L * width)), toWidth};
        }
        return new int[] {toHeight, (int) Math.max(1, (2L * width * toHeight + height) / (2L * height))};
    }

    private Pixels padded(Pixels in, int height, int width) {
        int[] size = inside(in.height, in.width, height, width);
        int h = size[0];
        int w = size[1];
        Pixels inner = resize(in, h, w);
        byte[] out = new byte[height * width * in.channels];
        java.util.Arrays.fill(out, (byte) contract.padValue);
        int top = (height - h) / 2;
        int left = (width - w) / 2;
        int row = w * in.channels;
        for (int y = 0; y < h; y++) {
            System.arraycopy(inner.data, y * row, out, ((y + top) * width + left) * in.channels, row);
        }
        return new Pixels(out, height, width, in.channels);
    }

    private Pixels cropped(Pixels in, int height, int width) {
        if (in.height < height || in.width < width) {
            throw new IllegalArgumentException("an image of " + in.height + " x " + in.width
                    + " is smaller than the crop of " + height + " x " + width);
        }
        int top = offset(contract.cropHalfEven, in.height - height);
        int left = offset(contract.cropHalfEven, in.width - width);
        int row = width * in.channels;
        byte[] out = new byte[height * row];
        for (int y = 0; y < height; y++) {
            System.arraycopy(in.data, ((y + top) * in.width + left) * in.channels, out, y * row, row);
        }
        return new Pixels(out, height, width, in.channels);
    }

    private static int offset(boolean halfEven, int margin) {
        int half = margin / 2;
        return halfEven && margin % 2 == 1 ? half + half % 2 : half;
    }

    private Pixels resize(Pixels in, int height, int width) {
        if (contract.filter.equals("nearest")) {
            return nearest(in, height, width);
        }
        Pixels out = in.width == width ? in : horizontal(in, width);
        return out.height == height ? out : vertical(out, height);
    }

    private static Pixels nearest(Pixels in, int height, int width) {
        byte[] out = new byte[height * width * in.channels];
        for (int y = 0; y < height; y++) {
            int sy = (int) ((2L * y + 1) * in.height / (2L * height));
            for (int x = 0; x < width; x++) {
                int sx = (int) ((2L * x + 1) * in.width / (2L * width));
                System.arraycopy(in.data, (sy * in.width + sx) * in.channels,
                        out, (y * width + x) * in.channels, in.channels);
            }
        }
        return new Pixels(out, height, width, in.channels);
    }

    /** The weights of one target position, from the source position {@code first} on. */
    private static final class Window {
        final int first;
        final int[] weights;

        Window(int first, int[] weights) {
            this.first = first;
            this.weights = weights;
        }
    }

    private Window[] windows(int source, int target) {
        double scale = (double) source / target;
        double stretch = contract.antialias ? Math.max(scale, 1.0) : 1.0;
        double support = radius() * stretch;
        double shrink = 1.0 / stretch;
        Window[] windows = new Window[target];
        for (int i = 0; i < target; i++) {
            double center = (i + 0.5) * scale;
            int first = Math.max((int) (center - support + 0.5), 0);
            int last = Math.min((int) (center + support + 0.5), source);
            double[] weights = new double[last - first];
            double total = 0.0;
            for (int x = 0; x < weights.length; x++) {
                weights[x] = weight((x + first - center + 0.5) * shrink);
                total += weights[x];
            }
            int[] fixed = new int[weights.length];
            for (int x = 0; x < weights.length; x++) {
                fixed[x] = fixed(total != 0.0 ? weights[x] / total : weights[x]);
            }
            windows[i] = new Window(first, fixed);
        }
        return windows;
    }

    private double radius() {
        switch (contract.filter) {
            case "box":
                return 0.5;
            case "bilinear":
                return 1.0;
            default:
                return 2.0;
        }
    }

    private double weight(double x) {
        double distance = Math.abs(x);
        switch (contract.filter) {
            case "box":
                return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
            case "bilinear":
                return distance < 1.0 ? 1.0 - distance : 0.0;
            default:
                if (distance < 1.0) {
                    return (1.5 * distance - 2.5) * distance * distance + 1.0;
                }
                return distance < 2.0
                        ? ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
                        : 0.0;
        }
    }

    private static int fixed(double weight) {
        double scaled = weight * (1 << PRECISION_BITS);
        return (int) (weight < 0 ? scaled - 0.5 : scaled + 0.5);
    }

    private Pixels horizontal(Pixels in, int width) {
        byte[] out = new byte[in.height * width * in.channels];
        Window[] windows = windows(in.width, width);
        for (int y = 0; y < in.height; y++) {
            for (int x = 0; x < width; x++) {
                for (int c = 0; c < in.channels; c++) {
                    int start = (y * in.width + windows[x].first) * in.channels + c;
                    out[(y * width + x) * in.channels + c] =
                            weighted(in.data, start, in.channels, windows[x].weights);
                }
            }
        }
        return new Pixels(out, in.height, width, in.channels);
    }

    private Pixels vertical(Pixels in, int height) {
        int row = in.width * in.channels;
        byte[] out = new byte[height * row];
        Window[] windows = windows(in.height, height);
        for (int y = 0; y < height; y++) {
            for (int i = 0; i < row; i++) {
                out[y * row + i] = weighted(in.data, windows[y].first * row + i, row, windows[y].weights);
            }
        }
        return new Pixels(out, height, in.width, in.channels);
    }

    private static byte weighted(byte[] data, int start, int step, int[] weights) {
        int sum = 1 << (PRECISION_BITS - 1);
        for (int k = 0; k < weights.length; k++) {
            sum += (data[start + k * step] & 0xff) * weights[k];
        }
        return (byte) Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
    }
}
