package @ID@;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/** What the outputs become, by the contract: in double, as Python's edgekit does it. */
final class Postprocessor {
    /** How far a result may be from Python's: exponentials differ in their last bits. */
    private static final double CLOSE = 1e-5;

    private final OutputContract contract;

    Postprocessor(OutputContract contract) {
        this.contract = contract;
    }

    /** Scores in the output's order; {@code width} is its last dimension. */
    double[] scores(float[] values, int width) {
        return activated(contract.kind, doubles(values), width);
    }

    /** Rows of class, score, left, top, right and bottom, the best first. */
    List<double[]> boxes(float[] boxes, int[] boxesShape, float[] scores, int[] scoresShape) {
        boolean both = contract.boxes.equals(contract.output);
        Rows corners = new Rows(boxes, boxesShape, contract.columns);
        Rows found = new Rows(scores, scoresShape, contract.columns);
        int first = both ? 4 : 0;
        List<double[]> candidates = new ArrayList<>();
        for (int i = 0; i < corners.count; i++) {
            double[] values = new double[found.width - first];
            for (int c = 0; c < values.length; c++) {
                values[c] = found.at(i, c + first);
            }
            values = activated(contract.activation, values, values.length);
            int best = -1;
            double top = Double.NEGATIVE_INFINITY;
            for (int c = 0; c < values.length; c++) {
                if (c != contract.background && values[c] > top) {
                    best = c;
                    top = values[c];
                }
            }
            if (top >= contract.minScore) {
                candidates.add(candidate(best, top, corners, i));
            }
        }
        // The sort is stable: of equal scores the earlier candidate is the better one.
        Collections.sort(candidates, new Comparator<double[]>() {
            @Override
            public int compare(double[] a, double[] b) {
                return a[1] == b[1] ? 0 : a[1] > b[1] ? -1 : 1;
            }
        });
        return suppressed(candidates);
    }

    /** Rows of boxes with their corners in pixels of an image, not beyond its edges; {@code frame} is where it lies. */
    static List<double[]> placed(List<double[]> rows, int[] frame, int height, int width) {
        List<double[]> found = new ArrayList<>();
        for (double[] row : rows) {
            double[] here = row.clone();
            for (int k = 2; k < 6; k += 2) {
                here[k] = within((row[k] * frame[5] - frame[1]) * ((double) width / frame[3]), width);
                here[k + 1] = within((row[k + 1] * frame[4] - frame[0]) * ((double) height / frame[2]), height);
            }
            found.add(here);
        }
        return found;
    }

    private static double within(double value, double most) {
        return Math.min(Math.max(value, 0), most);
    }

    /** Whether a result is the expected one; {@code unit} is what its values are measured in. */
    static boolean close(double[] got, double[] want, double unit) {
        boolean same = got.length == want.length;
        for (int i = 0; same && i < got.length; i++) {
            same = Double.compare(got[i], want[i]) == 0 || Math.abs(got[i] - want[i]) <= CLOSE * unit;
        }
        return same;
    }

    static double[] flat(List<double[]> rows) {
        double[] values = new double[rows.size() * 6];
        for (int i = 0; i < rows.size(); i++) {
            System.arraycopy(rows.get(i), 0, values, 6 * i, 6);
        }
        return values;
    }

    private double[] candidate(int best, double score, Rows corners, int i) {
        double a = corners.at(i, 0);
        double b = corners.at(i, 1);
        double c = corners.at(i, 2);
        double d = corners.at(i, 3);
        double[] row = {best, score, a, b, c, d};
        if (contract.boxFormat.equals("cxcywh")) {
            row = new double[] {best, score, a - c / 2, b - d / 2, a + c / 2, b + d / 2};
        } else if (contract.boxFormat.equals("yxyx")) {
            row = new double[] {best, score, b, a, d, c};
        }
        for (int k = 2; k < 6; k += 2) {
            row[k] /= contract.width;
            row[k + 1] /= contract.height;
        }
        return row;
    }

    private List<double[]> suppressed(List<double[]> candidates) {
        List<double[]> kept = new ArrayList<>();
        for (double[] candidate : candidates) {
            if (kept.size() == contract.most) {
                break;
            }
            boolean hidden = false;
            for (double[] k : kept) {
                hidden |= k[0] == candidate[0] && overlap(k, candidate) > contract.maxOverlap;
            }
            if (!hidden) {
                kept.add(candidate);
            }
        }
        return kept;
    }

    /** Intersection over union; 0 for boxes without an area. */
    private static double overlap(double[] a, double[] b) {
        double width = Math.max(Math.min(a[4], b[4]) - Math.max(a[2], b[2]), 0);
        double height = Math.max(Math.min(a[5], b[5]) - Math.max(a[3], b[3]), 0);
        double union = area(a) + area(b) - width * height;
        return union > 0 ? width * height / union : 0;
    }

    private static double area(double[] b) {
        return Math.max(b[4] - b[2], 0) * Math.max(b[5] - b[3], 0);
    }

    private static double[] activated(String kind, double[] values, int width) {
        if (kind.equals("sigmoid")) {
            for (int i = 0; i < values.length; i++) {
                values[i] = 1 / (1 + Math.exp(-values[i]));
            }
        } else if (kind.equals("softmax")) {
            for (int i = 0; i < values.length; i += width) {
                softmax(values, i, i + width);
            }
        }
        return values;
    }

    private static void softmax(double[] values, int from, int to) {
        double top = Double.NEGATIVE_INFINITY;
        for (int i = from; i < to; i++) {
            top = Math.max(top, values[i]);
        }
        double sum = 0;
        for (int i = from; i < to; i++) {
            values[i] = Math.exp(values[i] - top);
            sum += values[i];
        }
        for (int i = from; i < to; i++) {
            values[i] /= sum;
        }
    }

    private static double[] doubles(float[] values) {
        double[] found = new double[values.length];
        for (int i = 0; i < values.length; i++) {
            found[i] = values[i];
        }
        return found;
    }

    /** The last two axes of an output: candidates and what is said of each. */
    private static final class Rows {
        final float[] values;
        final int count;
        final int width;
        final boolean columns;

        Rows(float[] values, int[] shape, boolean columns) {
            int a = shape[shape.length - 2];
            int b = shape[shape.length - 1];
            this.values = values;
            this.count = columns ? b : a;
            this.width = columns ? a : b;
            this.columns = columns;
        }

        double at(int i, int j) {
            return values[columns ? j * count + i : i * width + j];
        }
    }
}
