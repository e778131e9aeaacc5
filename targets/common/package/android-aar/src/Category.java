package @ID@;

/** One class of a classification. The score is what the post-processing contract makes of the model's output. */
public final class Category {
    public final int index;
    public final String label;
    public final float score;

    Category(int index, String label, float score) {
        this.index = index;
        this.label = label;
        this.score = score;
    }

    @Override
    public String toString() {
        return label + " " + score;
    }
}
