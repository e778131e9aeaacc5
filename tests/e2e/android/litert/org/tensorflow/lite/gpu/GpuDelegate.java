package org.tensorflow.lite.gpu;

/** There is no GPU on this host: a wrapper has to fall back to the CPU. */
public class GpuDelegate implements org.tensorflow.lite.Delegate {
    public GpuDelegate() {
        throw new UnsupportedOperationException("no GPU");
    }

    public void close() {}
}
