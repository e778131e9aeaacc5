package @ID@;

/** Where one test vector is. {@code image} is null where the case has none. */
final class GoldenCase {
    final String name;
    final String label;
    final String image;
    final int height;
    final int width;
    final Stored[] inputs;
    final Stored[] outputs;
    /** What the post-processing contract makes of the outputs, or null. */
    final Stored result;
    /** The same with boxes in pixels of the image, or null. */
    final Stored placed;

    GoldenCase(
            String name, String label, String image, int height, int width, Stored[] inputs, Stored[] outputs,
            Stored result, Stored placed) {
        this.name = name;
        this.label = label;
        this.image = image;
        this.height = height;
        this.width = width;
        this.inputs = inputs;
        this.outputs = outputs;
        this.result = result;
        this.placed = placed;
    }

    /** One tensor in a file, in the order of the model's inputs or outputs. */
    static final class Stored {
        final String file;
        final String dtype;
        final int[] shape;

        Stored(String file, String dtype, int... shape) {
            this.file = file;
            this.dtype = dtype;
            this.shape = shape;
        }
    }
}
