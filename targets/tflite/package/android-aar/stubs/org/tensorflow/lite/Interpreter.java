package org.tensorflow.lite;

public final class Interpreter implements InterpreterApi {
    public static class Options extends InterpreterApi.Options {
        public Options addDelegate(Delegate delegate) {
            throw new UnsupportedOperationException();
        }
    }

    public Interpreter(java.nio.ByteBuffer model, Options options) {}

    public Tensor getInputTensor(int index) {
        throw new UnsupportedOperationException();
    }

    public Tensor getOutputTensor(int index) {
        throw new UnsupportedOperationException();
    }

    public void resizeInput(int index, int[] shape) {}

    public void allocateTensors() {}

    public void runForMultipleInputsOutputs(Object[] inputs, java.util.Map<Integer, Object> outputs) {}

    public void close() {}
}
