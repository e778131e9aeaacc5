package ai.onnxruntime;

public class OnnxTensor extends OnnxTensorLike {
    public static OnnxTensor createTensor(
            OrtEnvironment environment, java.nio.ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        throw new UnsupportedOperationException();
    }

    public TensorInfo getInfo() {
        throw new UnsupportedOperationException();
    }

    public java.nio.ByteBuffer getByteBuffer() {
        throw new UnsupportedOperationException();
    }

    public void close() {}
}
