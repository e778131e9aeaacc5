package @ID@;

/** How an image is prepared; the values are in Contract. See edgekit.json for the words. */
final class ImageContract {
    /** Name of the model input that takes the image. */
    String input;
    /** Shortest edge to resize to, or 0. */
    int edge;
    /** Height and width to resize to, or null. */
    int[] resize;
    boolean pad;
    int padValue;
    String filter = "bilinear";
    boolean antialias = true;
    /** Height and width of the central crop, or null. */
    int[] crop;
    boolean cropHalfEven;
    boolean gray;
    boolean bgr;
    double scale;
    double[] mean;
    double[] std;
    boolean channelsFirst;
}
