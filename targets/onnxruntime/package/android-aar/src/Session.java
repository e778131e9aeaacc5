package @ID@;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.util.LinkedHashMap;
import java.util.Map;

/** ONNX Runtime: its own kernels on the CPU, NNAPI for the NPU. */
final class Session {
    /** In the order of preference; the CPU is last because it always works. */
    static final Accelerator[] ACCELERATORS = {Accelerator.NPU, Accelerator.CPU};

    private final OrtEnvironment environment;
    private final OrtSession session;

    private Session(OrtEnvironment environment, OrtSession session) {
        this.environment = environment;
        this.session = session;
    }

    static Session create(ByteBuffer model, Accelerator accelerator) {
        byte[] bytes = new byte[model.remaining()];
        model.get(bytes);
        try {
            OrtEnvironment environment = OrtEnvironment.getEnvironment();
            environment.setTelemetry(false);
            OrtSession.SessionOptions options = new OrtSession.SessionOptions();
            options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT);
            if (accelerator == Accelerator.NPU) {
                options.addNnapi();
            } else if (accelerator != Accelerator.CPU) {
                throw new IllegalArgumentException("ONNX Runtime on Android does not run on the " + accelerator);
            }
            return new Session(environment, environment.createSession(bytes, options));
        } catch (OrtException e) {
            throw new IllegalStateException(e);
        }
    }

    Tensor[] run(Tensor[] inputs) {
        Map<String, OnnxTensor> fed = new LinkedHashMap<>();
        try {
            for (int i = 0; i < inputs.length; i++) {
                fed.put(Contract.INPUTS[i].name, tensor(inputs[i]));
            }
            OrtSession.Result result = session.run(fed);
            try {
                Tensor[] outputs = new Tensor[Contract.OUTPUTS.length];
                for (int i = 0; i < outputs.length; i++) {
                    OnnxTensor found = (OnnxTensor) result.get(i);
                    outputs[i] = copy(found, Contract.OUTPUTS[i].dtype);
                }
                return outputs;
            } finally {
                result.close();
            }
        } catch (OrtException e) {
            throw new IllegalStateException(e);
        } finally {
            for (OnnxTensor tensor : fed.values()) {
                tensor.close();
            }
        }
    }

    void close() {
        try {
            session.close();
        } catch (OrtException e) {
            throw new IllegalStateException(e);
        }
    }

    private OnnxTensor tensor(Tensor tensor) throws OrtException {
        long[] shape = new long[tensor.shape.length];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = tensor.shape[i];
        }
        tensor.data.rewind();
        return OnnxTensor.createTensor(environment, tensor.data, shape, type(tensor.dtype));
    }

    private static Tensor copy(OnnxTensor tensor, String dtype) {
        long[] dimensions = tensor.getInfo().getShape();
        int[] shape = new int[dimensions.length];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = (int) dimensions[i];
        }
        ByteBuffer values = tensor.getByteBuffer();
        ByteBuffer data = Tensor.allocate(values.remaining());
        data.put(values);
        data.rewind();
        return new Tensor(dtype, shape, data);
    }

    private static OnnxJavaType type(String dtype) {
        switch (dtype) {
            case "float32":
                return OnnxJavaType.FLOAT;
            case "float64":
                return OnnxJavaType.DOUBLE;
            case "int64":
                return OnnxJavaType.INT64;
            case "int32":
                return OnnxJavaType.INT32;
            case "int16":
                return OnnxJavaType.INT16;
            case "int8":
                return OnnxJavaType.INT8;
            case "uint8":
                return OnnxJavaType.UINT8;
            case "bool":
                return OnnxJavaType.BOOL;
            default:
                throw new IllegalArgumentException("tensors of " + dtype + " are not supported");
        }
    }
}
