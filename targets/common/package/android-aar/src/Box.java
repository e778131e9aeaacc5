package @ID@;

/**
 * One object that was found. Corners are in pixels of the image that was given, and not beyond its edges. Without one they
 * are shares of the model's input: of the image as it was resized and cropped.
 */
public final class Box {
    public final int index;
    public final String label;
    public final float score;
    public final float left;
    public final float top;
    public final float right;
    public final float bottom;

    Box(int index, String label, double[] row) {
        this.index = index;
        this.label = label;
        this.score = (float) row[1];
        this.left = (float) row[2];
        this.top = (float) row[3];
        this.right = (float) row[4];
        this.bottom = (float) row[5];
    }

    @Override
    public String toString() {
        return label + " " + score + " [" + left + ", " + top + ", " + right + ", " + bottom + "]";
    }
}
