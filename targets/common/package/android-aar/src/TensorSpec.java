package @ID@;

/** One input or output of the model. A dimension of -1 is dynamic. */
public final class TensorSpec {
    public final String name;
    public final String dtype;
    final int[] shape;
    /** For integer tensors: real = scale * (stored - zeroPoint). NaN where values are real. */
    public final double scale;
    public final int zeroPoint;

    TensorSpec(String name, String dtype, int[] shape, double scale, int zeroPoint) {
        this.name = name;
        this.dtype = dtype;
        this.shape = shape;
        this.scale = scale;
        this.zeroPoint = zeroPoint;
    }

    public int[] shape() {
        return shape.clone();
    }

    boolean isQuantized() {
        return !Double.isNaN(scale);
    }

    /** The declared shape with 1 for what is dynamic. */
    int[] defaultShape() {
        int[] fixed = shape.clone();
        for (int i = 0; i < fixed.length; i++) {
            fixed[i] = Math.max(fixed[i], 1);
        }
        return fixed;
    }

    /** Throws IllegalArgumentException unless {@code tensor} is what this input takes. */
    void check(Tensor tensor) {
        if (!dtype.equals(tensor.dtype)) {
            throw new IllegalArgumentException("input " + name + " takes " + dtype + ", not " + tensor.dtype);
        }
        boolean fits = tensor.shape.length == shape.length;
        for (int i = 0; fits && i < shape.length; i++) {
            fits = shape[i] < 0 || shape[i] == tensor.shape[i];
        }
        if (!fits) {
            throw new IllegalArgumentException(
                    "input " + name + " takes " + java.util.Arrays.toString(shape)
                            + ", not " + java.util.Arrays.toString(tensor.shape));
        }
    }
}
