package @ID@;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import org.tensorflow.lite.Delegate;
import org.tensorflow.lite.Interpreter;
import org.tensorflow.lite.gpu.GpuDelegate;

/** LiteRT through its Interpreter API: XNNPACK on the CPU, the GPU delegate where the app depends on it. */
final class Session {
    /** In the order of preference; the CPU is last because it always works. */
    static final Accelerator[] ACCELERATORS = {Accelerator.GPU, Accelerator.CPU};

    private final Interpreter interpreter;
    private final Delegate delegate;

    private Session(Interpreter interpreter, Delegate delegate) {
        this.interpreter = interpreter;
        this.delegate = delegate;
    }

    static Session create(ByteBuffer model, Accelerator accelerator) {
        Interpreter.Options options = new Interpreter.Options();
        Delegate delegate = null;
        if (accelerator == Accelerator.GPU) {
            delegate = new GpuDelegate();
            options.addDelegate(delegate);
        } else if (accelerator != Accelerator.CPU) {
            throw new IllegalArgumentException("LiteRT's Interpreter does not run on the " + accelerator);
        }
        return new Session(new Interpreter(model, options), delegate);
    }

    Tensor[] run(Tensor[] inputs) {
        Object[] fed = new Object[inputs.length];
        for (int i = 0; i < inputs.length; i++) {
            if (!java.util.Arrays.equals(interpreter.getInputTensor(i).shape(), inputs[i].shape)) {
                interpreter.resizeInput(i, inputs[i].shape);
            }
            fed[i] = inputs[i].data.rewind();
        }
        interpreter.allocateTensors();
        Map<Integer, Object> found = new HashMap<>();
        ByteBuffer[] buffers = new ByteBuffer[Contract.OUTPUTS.length];
        for (int i = 0; i < buffers.length; i++) {
            buffers[i] = Tensor.allocate(interpreter.getOutputTensor(i).numBytes());
            found.put(i, buffers[i]);
        }
        interpreter.runForMultipleInputsOutputs(fed, found);
        Tensor[] outputs = new Tensor[buffers.length];
        for (int i = 0; i < buffers.length; i++) {
            buffers[i].rewind();
            int[] shape = interpreter.getOutputTensor(i).shape();
            outputs[i] = new Tensor(Contract.OUTPUTS[i].dtype, shape, buffers[i]);
        }
        return outputs;
    }

    void close() {
        interpreter.close();
        if (delegate != null) {
            delegate.close();
        }
    }
}
