package org.tensorflow.lite;

public interface InterpreterApi extends AutoCloseable {
    class Options {}
}
