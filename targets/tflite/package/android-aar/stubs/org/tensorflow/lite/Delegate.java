package org.tensorflow.lite;

public interface Delegate extends java.io.Closeable {
    void close();
}
