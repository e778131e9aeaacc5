package ai.onnxruntime;

public class TensorInfo {
    public long[] getShape() {
        throw new UnsupportedOperationException();
    }
}
