package @ID@;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Values of one input or output in C order. */
public final class Tensor {
    public final String dtype;
    final int[] shape;
    final ByteBuffer data;

    Tensor(String dtype, int[] shape, ByteBuffer data) {
        this.dtype = dtype;
        this.shape = shape.clone();
        this.data = data;
        if (count(shape) * (long) width(dtype) != data.capacity()) {
            throw new IllegalArgumentException(
                    data.capacity() / width(dtype) + " values do not fill " + java.util.Arrays.toString(shape));
        }
    }

    public static Tensor of(float[] values, int... shape) {
        ByteBuffer data = allocate(values.length * 4);
        data.asFloatBuffer().put(values);
        return new Tensor("float32", shape, data);
    }

    public static Tensor of(int[] values, int... shape) {
        ByteBuffer data = allocate(values.length * 4);
        data.asIntBuffer().put(values);
        return new Tensor("int32", shape, data);
    }

    public static Tensor of(long[] values, int... shape) {
        ByteBuffer data = allocate(values.length * 8);
        data.asLongBuffer().put(values);
        return new Tensor("int64", shape, data);
    }

    /** Bytes as they are, for {@code "uint8"}, {@code "int8"} and {@code "bool"}. */
    public static Tensor of(byte[] values, String dtype, int... shape) {
        ByteBuffer data = allocate(values.length);
        data.put(values);
        data.rewind();
        return new Tensor(dtype, shape, data);
    }

    public int[] shape() {
        return shape.clone();
    }

    /** The stored values, integers too, as numbers. */
    public double[] values() {
        double[] values = new double[(int) count(shape)];
        for (int i = 0; i < values.length; i++) {
            values[i] = value(i);
        }
        return values;
    }

    /** Real values: dequantized where the tensor is quantized. */
    public float[] floats(TensorSpec spec) {
        float[] values = new float[(int) count(shape)];
        for (int i = 0; i < values.length; i++) {
            double stored = value(i);
            values[i] = (float) (spec.isQuantized() ? (stored - spec.zeroPoint) * spec.scale : stored);
        }
        return values;
    }

    double value(int i) {
        switch (dtype) {
            case "float32":
                return data.getFloat(4 * i);
            case "float64":
                return data.getDouble(8 * i);
            case "int64":
                return data.getLong(8 * i);
            case "int32":
                return data.getInt(4 * i);
            case "int16":
                return data.getShort(2 * i);
            case "int8":
                return data.get(i);
            default:
                return data.get(i) & 0xff;
        }
    }

    static ByteBuffer allocate(int bytes) {
        return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    }

    static int width(String dtype) {
        switch (dtype) {
            case "float32":
            case "int32":
                return 4;
            case "float64":
            case "int64":
                return 8;
            case "int16":
                return 2;
            case "int8":
            case "uint8":
            case "bool":
                return 1;
            default:
                throw new IllegalArgumentException("tensors of " + dtype + " are not supported");
        }
    }

    private static long count(int[] shape) {
        long count = 1;
        for (int d : shape) {
            count *= d;
        }
        return count;
    }
}
