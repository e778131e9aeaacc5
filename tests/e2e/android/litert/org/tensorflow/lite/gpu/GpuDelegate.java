package org.tensorflow.lite.gpu;

/** There is no GPU on this host, unless a test asks for one that computes "right" or "wrong". */
public class GpuDelegate implements org.tensorflow.lite.Delegate {
    public GpuDelegate() {
        if (System.getProperty("litert.gpu") == null) {
            throw new UnsupportedOperationException("no GPU");
        }
    }

    public void close() {}
}
