package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    public static OrtEnvironment getEnvironment() {
        throw new UnsupportedOperationException();
    }

    public void setTelemetry(boolean send) throws OrtException {}

    public OrtSession createSession(byte[] model, OrtSession.SessionOptions options) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public void close() {}
}
