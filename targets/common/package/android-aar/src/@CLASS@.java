package @ID@;

import android.content.Context;
import android.content.res.AssetManager;
import android.graphics.Bitmap;

import java.io.Closeable;
import java.io.IOException;
import java.nio.charset.Charset;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * @NAME@ @VERSION@ (@TARGET@): the model with its preprocessing, labels and self-test.
 *
 * <p>Not thread-safe: use one instance a thread, or synchronize. Wrong sizes throw
 * IllegalArgumentException; a runtime that fails throws IllegalStateException.
 */
public final class @CLASS@ implements Closeable {
    private final Assets assets;
    private final Accelerator accelerator;
    private final Session session;
    private final byte[] labelBytes;
    private final List<String> labels;
    private final Preprocessor preprocessor;
    private final Postprocessor postprocessor =
            Contract.RESULT == null ? null : new Postprocessor(Contract.RESULT);

    private @CLASS@(Assets assets, Accelerator accelerator) throws IOException {
        this.assets = assets;
        this.accelerator = accelerator;
        this.labelBytes = Contract.LABELS == null ? new byte[0] : assets.read(Contract.LABELS);
        this.labels = lines(labelBytes);
        this.preprocessor =
                Contract.IMAGE == null ? null : new Preprocessor(Contract.IMAGE, imageSpec());
        this.session = Session.create(assets.map(Contract.MODEL), accelerator);
    }

    /** Load on the CPU. */
    public static @CLASS@ load(Context context) throws IOException {
        return load(context.getAssets(), Accelerator.CPU);
    }

    /** Load on one accelerator, without a test. */
    public static @CLASS@ load(AssetManager assets, Accelerator accelerator) throws IOException {
        return new @CLASS@(new Assets(assets), accelerator);
    }

    /**
     * Load on the first accelerator whose self-test passes, the CPU last. A package without golden vectors is taken
     * on the CPU, untested.
     *
     * @throws IllegalStateException where none passes; the message says why for each
     */
    public static @CLASS@ loadVerified(Context context) throws IOException {
        return loadVerified(context.getAssets());
    }

    public static @CLASS@ loadVerified(AssetManager assets) throws IOException {
        StringBuilder refused = new StringBuilder();
        for (Accelerator accelerator : Session.ACCELERATORS) {
            @CLASS@ model = null;
            try {
                model = load(assets, accelerator);
                // Without golden vectors nothing proves another unit than the one that they were made on.
                if (Contract.GOLDEN.length == 0 && accelerator == Accelerator.CPU) {
                    return model;
                }
                SelfTestReport report = model.selfTest();
                if (report.passed()) {
                    return model;
                }
                refused.append('\n').append(report);
            } catch (RuntimeException | LinkageError e) {
                refused.append('\n').append(accelerator).append(": ").append(e);
            }
            if (model != null) {
                model.close();
            }
        }
        throw new IllegalStateException("no accelerator passes the self-test:" + refused);
    }

    public Accelerator accelerator() {
        return accelerator;
    }

    /** Class names in output order; empty where the model has none. */
    public List<String> labels() {
        return labels;
    }

    public List<TensorSpec> inputs() {
        return Collections.unmodifiableList(Arrays.asList(Contract.INPUTS));
    }

    public List<TensorSpec> outputs() {
        return Collections.unmodifiableList(Arrays.asList(Contract.OUTPUTS));
    }

    /** The tensor that the model is fed for an image of 3 bytes a pixel. */
    public Tensor preprocess(byte[] rgb, int width, int height) {
        if (preprocessor == null) {
            throw new IllegalStateException(Contract.NAME + " takes no image; use run()");
        }
        return preprocessor.apply(rgb, height, width);
    }

    public Tensor preprocess(Bitmap bitmap) {
        int width = bitmap.getWidth();
        int height = bitmap.getHeight();
        int[] argb = new int[width * height];
        bitmap.getPixels(argb, 0, width, 0, 0, width, height);
        byte[] rgb = new byte[argb.length * 3];
        for (int i = 0; i < argb.length; i++) {
            rgb[3 * i] = (byte) (argb[i] >> 16);
            rgb[3 * i + 1] = (byte) (argb[i] >> 8);
            rgb[3 * i + 2] = (byte) argb[i];
        }
        return preprocess(rgb, width, height);
    }

    /** Outputs by name, for inputs by name. */
    public Map<String, Tensor> run(Map<String, Tensor> inputs) {
        Tensor[] fed = new Tensor[Contract.INPUTS.length];
        for (int i = 0; i < fed.length; i++) {
            TensorSpec spec = Contract.INPUTS[i];
            fed[i] = inputs.get(spec.name);
            if (fed[i] == null) {
                throw new IllegalArgumentException("input " + spec.name + " is missing");
            }
            spec.check(fed[i]);
        }
        Tensor[] found = session.run(fed);
        Map<String, Tensor> outputs = new LinkedHashMap<>();
        for (int i = 0; i < found.length; i++) {
            outputs.put(Contract.OUTPUTS[i].name, found[i]);
        }
        return outputs;
    }

    /** Outputs for the model's only input. */
    public Map<String, Tensor> run(Tensor input) {
        if (Contract.INPUTS.length != 1) {
            throw new IllegalArgumentException("the model has " + Contract.INPUTS.length + " inputs");
        }
        return run(Collections.singletonMap(Contract.INPUTS[0].name, input));
    }

    public Map<String, Tensor> predict(Bitmap bitmap) {
        return run(Collections.singletonMap(imageSpec().name, preprocess(bitmap)));
    }

    public Map<String, Tensor> predict(byte[] rgb, int width, int height) {
        return run(Collections.singletonMap(imageSpec().name, preprocess(rgb, width, height)));
    }

    /** The best classes, best first. */
    public List<Category> classify(Bitmap bitmap, int count) {
        return best(predict(bitmap), count);
    }

    public List<Category> classify(byte[] rgb, int width, int height, int count) {
        return best(predict(rgb, width, height), count);
    }

    /** What a detector finds, best first, in the image's pixels. */
    public List<Box> detect(Bitmap bitmap) {
        return boxes(predict(bitmap), bitmap.getWidth(), bitmap.getHeight());
    }

    public List<Box> detect(byte[] rgb, int width, int height) {
        return boxes(predict(rgb, width, height), width, height);
    }

    /** The best classes of outputs that {@link #run} gave. */
    public List<Category> best(Map<String, Tensor> outputs, int count) {
        double[] scores = scores(outputs);
        int[] shape = outputs.get(Contract.RESULT.output).shape;
        if (scores.length != shape[shape.length - 1]) {
            throw new IllegalStateException(
                    "the scores are " + Arrays.toString(shape) + ", more than one row: use scores()");
        }
        List<Category> found = new ArrayList<>();
        for (int i = 0; i < scores.length; i++) {
            found.add(new Category(i, label(i), (float) scores[i]));
        }
        Collections.sort(found, new Comparator<Category>() {
            @Override
            public int compare(Category a, Category b) {
                return Float.compare(b.score, a.score);
            }
        });
        return found.subList(0, Math.min(Math.max(count, 0), found.size()));
    }

    /** Scores of every class as the post-processing contract says, in the order of the labels. */
    public double[] scores(Map<String, Tensor> outputs) {
        check(false);
        TensorSpec spec = output(Contract.RESULT.output);
        int width = outputs.get(spec.name).shape[spec.shape.length - 1];
        return postprocessor.scores(outputs.get(spec.name).floats(spec), width);
    }

    /** The boxes of outputs that {@link #run} gave, as shares of the model's input. */
    public List<Box> boxes(Map<String, Tensor> outputs) {
        check(true);
        return boxes(rows(outputs));
    }

    /** The boxes of outputs that {@link #run} gave, in pixels of the image that it was fed. */
    public List<Box> boxes(Map<String, Tensor> outputs, int width, int height) {
        check(true);
        imageSpec();
        return boxes(placed(rows(outputs), width, height));
    }

    private static List<double[]> placed(List<double[]> rows, int width, int height) {
        return Postprocessor.placed(rows, Preprocessor.frame(Contract.IMAGE, height, width), height, width);
    }

    private List<Box> boxes(List<double[]> rows) {
        List<Box> found = new ArrayList<>();
        for (double[] row : rows) {
            found.add(new Box((int) row[0], label((int) row[0]), row));
        }
        return found;
    }

    /**
     * Run the golden vectors on this device and accelerator.
     *
     * @throws IllegalStateException where the package has none
     */
    public SelfTestReport selfTest() throws IOException {
        if (Contract.GOLDEN.length == 0) {
            throw new IllegalStateException(
                    Contract.NAME + " was packaged without golden vectors: nothing can be tested");
        }
        double limit = Contract.TOLERANCES[accelerator.ordinal()];
        List<SelfTestReport.Case> cases = new ArrayList<>();
        String wrongLabels = checkLabels();
        if (!wrongLabels.isEmpty()) {
            cases.add(new SelfTestReport.Case("labels", 0, limit, wrongLabels));
        }
        for (GoldenCase golden : Contract.GOLDEN) {
            cases.add(judge(golden, limit));
        }
        return new SelfTestReport(accelerator, cases);
    }

    @Override
    public void close() {
        session.close();
    }

    private SelfTestReport.Case judge(GoldenCase golden, double limit) throws IOException {
        Tensor[] fed = new Tensor[golden.inputs.length];
        Map<String, Tensor> inputs = new LinkedHashMap<>();
        for (int i = 0; i < fed.length; i++) {
            GoldenCase.Stored stored = golden.inputs[i];
            fed[i] = assets.tensor(stored.file, stored.dtype, stored.shape);
            inputs.put(Contract.INPUTS[i].name, fed[i]);
        }
        String message = "";
        if (golden.image != null && preprocessor != null) {
            Tensor got = preprocess(assets.read(golden.image), golden.width, golden.height);
            if (!got.data.equals(inputs.get(imageSpec().name).data)) {
                message = "the image does not become the tensor that the model was tested with";
            }
        }
        Map<String, Tensor> outputs = run(inputs);
        double error = 0;
        for (int i = 0; i < golden.outputs.length; i++) {
            GoldenCase.Stored stored = golden.outputs[i];
            Tensor expected = assets.tensor(stored.file, stored.dtype, stored.shape);
            error = Math.max(error, relativeError(outputs.get(Contract.OUTPUTS[i].name), expected));
        }
        if (message.isEmpty() && !(error <= limit)) {
            message = String.format(Locale.ROOT,
                    "an output is off by %.3g of its largest value, %g is allowed", error, limit);
        }
        if (message.isEmpty() && !golden.label.isEmpty()) {
            String label = best(outputs, 1).get(0).label;
            if (!label.equals(golden.label)) {
                message = "the class is " + label + ", expected " + golden.label;
            }
        }
        if (message.isEmpty() && golden.result != null) {
            message = checkPostprocessing(golden);
        }
        return new SelfTestReport.Case(golden.name, error, limit, message);
    }

    /** The arithmetic alone, on the stored outputs: what the runtime makes of the inputs is judged by itself. */
    private String checkPostprocessing(GoldenCase golden) throws IOException {
        Map<String, Tensor> stored = new LinkedHashMap<>();
        for (int i = 0; i < golden.outputs.length; i++) {
            GoldenCase.Stored file = golden.outputs[i];
            stored.put(Contract.OUTPUTS[i].name, assets.tensor(file.file, file.dtype, file.shape));
        }
        Tensor want = assets.tensor(golden.result.file, golden.result.dtype, golden.result.shape);
        double[] got = Contract.RESULT.givesBoxes() ? Postprocessor.flat(rows(stored)) : scores(stored);
        if (!Postprocessor.close(got, want.values(), 1)) {
            return "the outputs do not become what the post-processing contract says";
        }
        if (golden.placed == null || Contract.IMAGE == null) {
            return "";
        }
        Tensor where = assets.tensor(golden.placed.file, golden.placed.dtype, golden.placed.shape);
        double[] here = Postprocessor.flat(placed(rows(stored), golden.width, golden.height));
        return Postprocessor.close(here, where.values(), Math.max(golden.width, golden.height))
                ? "" : "the boxes are not where they should be in the image";
    }

    private List<double[]> rows(Map<String, Tensor> outputs) {
        Tensor boxes = outputs.get(Contract.RESULT.boxes);
        Tensor scores = outputs.get(Contract.RESULT.output);
        return postprocessor.boxes(
                boxes.floats(output(Contract.RESULT.boxes)), boxes.shape,
                scores.floats(output(Contract.RESULT.output)), scores.shape);
    }

    private void check(boolean boxes) {
        if (postprocessor == null) {
            throw new IllegalStateException(
                    Contract.NAME + " has no labels and no post-processing; use run() or predict()");
        }
        if (Contract.RESULT.givesBoxes() != boxes) {
            throw new IllegalStateException(
                    Contract.NAME + (boxes ? " gives no boxes; use classify()" : " gives boxes; use detect()"));
        }
    }

    private String label(int index) {
        return index < labels.size() ? labels.get(index) : String.valueOf(index);
    }

    private static TensorSpec output(String name) {
        for (TensorSpec spec : Contract.OUTPUTS) {
            if (spec.name.equals(name)) {
                return spec;
            }
        }
        throw new IllegalStateException("there is no output " + name);
    }

    private static double relativeError(Tensor actual, Tensor expected) {
        double[] a = actual.values();
        double[] e = expected.values();
        if (a.length != e.length) {
            return Double.POSITIVE_INFINITY;
        }
        double worst = 0;
        double peak = 0;
        for (int i = 0; i < e.length; i++) {
            double difference = Double.compare(a[i], e[i]) == 0 ? 0 : Math.abs(a[i] - e[i]);
            if (Double.isNaN(difference)) {
                return Double.POSITIVE_INFINITY;
            }
            worst = Math.max(worst, difference);
            peak = Math.max(peak, Math.abs(e[i]));
        }
        return worst == 0 ? 0 : worst / peak;
    }

    private String checkLabels() {
        if (Contract.LABELS == null) {
            return "";
        }
        try {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(labelBytes);
            StringBuilder hex = new StringBuilder();
            for (byte b : digest) {
                hex.append(String.format(Locale.ROOT, "%02x", b & 0xff));
            }
            return hex.toString().equals(Contract.LABELS_SHA256)
                    ? "" : Contract.LABELS + " is not the label file of this model";
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    private static TensorSpec imageSpec() {
        for (TensorSpec spec : Contract.INPUTS) {
            if (Contract.IMAGE != null && spec.name.equals(Contract.IMAGE.input)) {
                return spec;
            }
        }
        throw new IllegalStateException(Contract.NAME + " takes no image; use run()");
    }

    private static List<String> lines(byte[] text) {
        List<String> found = new ArrayList<>();
        if (text.length > 0) {
            for (String line : new String(text, Charset.forName("UTF-8")).split("\n")) {
                found.add(line);
            }
        }
        return Collections.unmodifiableList(found);
    }
}
