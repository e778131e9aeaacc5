package ai.onnxruntime;

import java.util.Map;

public class OrtSession implements AutoCloseable {
    public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public void close() throws OrtException {}

    public static class Result implements AutoCloseable {
        public OnnxValue get(int index) {
            throw new UnsupportedOperationException();
        }

        public void close() {}
    }

    public static class SessionOptions implements AutoCloseable {
        public enum OptLevel { NO_OPT, BASIC_OPT, EXTENDED_OPT, ALL_OPT }

        public void setOptimizationLevel(OptLevel level) throws OrtException {}

        public void addNnapi() throws OrtException {}

        public void close() {}
    }
}
