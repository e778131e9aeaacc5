package org.tensorflow.lite;

import com.sun.jna.Memory;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.LongByReference;
import com.sun.jna.ptr.PointerByReference;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** LiteRT's Interpreter for a desktop JVM: the real native library behind the class that Android has. */
public final class Interpreter implements InterpreterApi {
    private static final int CPU = 1;
    private static final int READ = 0;
    private static final int WRITE = 1;

    public static class Options extends InterpreterApi.Options {
        private boolean delegated;

        public Options addDelegate(Delegate delegate) {
            delegated = true;
            return this;
        }
    }

    private static final class Slot implements Tensor {
        final Pointer buffer;
        final int[] shape;
        final int bytes;

        Slot(Pointer buffer, int[] shape, int bytes) {
            this.buffer = buffer;
            this.shape = shape;
            this.bytes = bytes;
        }

        public int[] shape() {
            return shape;
        }

        public int numBytes() {
            return bytes;
        }
    }

    private final boolean wrong;
    private final Memory model;
    private final Pointer environment;
    private final Pointer compiled;
    private final List<Slot> inputs = new ArrayList<>();
    private final List<Slot> outputs = new ArrayList<>();

    public Interpreter(ByteBuffer data, Options options) {
        LiteRt api = LiteRt.API;
        wrong = options.delegated && "wrong".equals(System.getProperty("litert.gpu"));
        model = new Memory(data.remaining());
        byte[] bytes = new byte[data.remaining()];
        data.get(bytes);
        model.write(0, bytes, 0, bytes.length);
        PointerByReference out = new PointerByReference();
        LiteRt.check(api.LiteRtCreateEnvironment(0, null, out), "environment");
        environment = out.getValue();
        LiteRt.check(api.LiteRtCreateOptions(out), "options");
        Pointer settings = out.getValue();
        LiteRt.check(api.LiteRtSetOptionsHardwareAccelerators(settings, CPU), "accelerators");
        LiteRt.check(api.LiteRtCreateModelFromBuffer(environment, model, model.size(), out), "model");
        Pointer loaded = out.getValue();
        LiteRt.check(api.LiteRtCreateCompiledModel(environment, loaded, settings, out), "compile");
        compiled = out.getValue();
        LiteRt.check(api.LiteRtGetModelSignature(loaded, 0, out), "signature");
        Pointer signature = out.getValue();
        LongByReference count = new LongByReference();
        LiteRt.check(api.LiteRtGetNumSignatureInputs(signature, count), "inputs");
        for (long i = 0; i < count.getValue(); i++) {
            LiteRt.check(api.LiteRtGetSignatureInputTensorByIndex(signature, i, out), "input");
            Pointer tensor = out.getValue();
            LiteRt.check(api.LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, i, out), "requirements");
            inputs.add(slot(tensor, out.getValue()));
        }
        LiteRt.check(api.LiteRtGetNumSignatureOutputs(signature, count), "outputs");
        for (long i = 0; i < count.getValue(); i++) {
            LiteRt.check(api.LiteRtGetSignatureOutputTensorByIndex(signature, i, out), "output");
            Pointer tensor = out.getValue();
            LiteRt.check(api.LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, i, out), "requirements");
            outputs.add(slot(tensor, out.getValue()));
        }
    }

    private Slot slot(Pointer tensor, Pointer requirements) {
        LiteRt api = LiteRt.API;
        // LiteRtRankedTensorType: element type, rank in the low 7 bits, then dimensions.
        Memory type = new Memory(128);
        LiteRt.check(api.LiteRtGetRankedTensorType(tensor, type), "type");
        int[] shape = type.getIntArray(8, type.getInt(4) & 0x7f);
        PointerByReference out = new PointerByReference();
        LiteRt.check(
                api.LiteRtCreateManagedTensorBufferFromRequirements(environment, type, requirements, out), "buffer");
        LongByReference size = new LongByReference();
        LiteRt.check(api.LiteRtGetTensorBufferPackedSize(out.getValue(), size), "size");
        return new Slot(out.getValue(), shape, (int) size.getValue());
    }

    public Tensor getInputTensor(int index) {
        return inputs.get(index);
    }

    public Tensor getOutputTensor(int index) {
        return outputs.get(index);
    }

    public void resizeInput(int index, int[] shape) {
        throw new IllegalArgumentException("fixed shapes");
    }

    public void allocateTensors() {}

    public void runForMultipleInputsOutputs(Object[] fed, Map<Integer, Object> found) {
        LiteRt api = LiteRt.API;
        for (int i = 0; i < fed.length; i++) {
            ByteBuffer data = (ByteBuffer) fed[i];
            Slot slot = inputs.get(i);
            if (!data.isDirect() || data.remaining() != slot.bytes) {
                throw new IllegalArgumentException(
                        "input " + i + " takes " + slot.bytes + " bytes in a direct buffer, not " + data.remaining());
            }
            byte[] bytes = new byte[slot.bytes];
            data.duplicate().get(bytes);
            lock(slot, WRITE).write(0, bytes, 0, bytes.length);
            api.LiteRtUnlockTensorBuffer(slot.buffer);
        }
        LiteRt.check(
                api.LiteRtRunCompiledModel(compiled, 0, inputs.size(), buffers(inputs), outputs.size(), buffers(outputs)),
                "run");
        for (Map.Entry<Integer, Object> entry : found.entrySet()) {
            Slot slot = outputs.get(entry.getKey());
            byte[] bytes = lock(slot, READ).getByteArray(0, slot.bytes);
            if (wrong) {
                for (int i = 0; i < bytes.length / 2; i++) { // the values in reverse
                    byte kept = bytes[i];
                    int other = (bytes.length / 4 - 1 - i / 4) * 4 + i % 4;
                    bytes[i] = bytes[other];
                    bytes[other] = kept;
                }
            }
            ((ByteBuffer) entry.getValue()).put(bytes);
            api.LiteRtUnlockTensorBuffer(slot.buffer);
        }
    }

    private static Pointer lock(Slot slot, int mode) {
        PointerByReference out = new PointerByReference();
        LiteRt.check(LiteRt.API.LiteRtLockTensorBuffer(slot.buffer, out, mode), "lock");
        return out.getValue();
    }

    private static Pointer[] buffers(List<Slot> slots) {
        Pointer[] buffers = new Pointer[slots.size()];
        for (int i = 0; i < buffers.length; i++) {
            buffers[i] = slots.get(i).buffer;
        }
        return buffers;
    }

    public void close() {}
}
