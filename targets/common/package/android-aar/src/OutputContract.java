package @ID@;

/** What makes probabilities, or boxes, of the model's outputs; see README.md. */
final class OutputContract {
    /** "none", "softmax", "sigmoid" or "boxes". */
    String kind;
    String output;
    String boxes;
    /** "xyxy", "yxyx" or "cxcywh". */
    String boxFormat;
    boolean columns;
    String activation;
    int background;
    double height;
    double width;
    double minScore;
    double maxOverlap;
    int most;

    boolean givesBoxes() {
        return kind.equals("boxes");
    }
}
