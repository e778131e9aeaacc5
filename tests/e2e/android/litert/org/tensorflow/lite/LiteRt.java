package org.tensorflow.lite;

import com.sun.jna.Library;
import com.sun.jna.Native;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.LongByReference;
import com.sun.jna.ptr.PointerByReference;
import java.nio.Buffer;

/** The functions of LiteRT's C interface that running a model needs; every one returns 0 or a status. */
interface LiteRt extends Library {
    LiteRt API = Native.load(System.getProperty("litert.library"), LiteRt.class);

    int LiteRtCreateEnvironment(int count, Pointer options, PointerByReference environment);

    int LiteRtCreateOptions(PointerByReference options);

    int LiteRtSetOptionsHardwareAccelerators(Pointer options, int accelerators);

    int LiteRtCreateModelFromBuffer(Pointer environment, Pointer data, long size, PointerByReference model);

    int LiteRtCreateCompiledModel(
            Pointer environment, Pointer model, Pointer options, PointerByReference compiled);

    int LiteRtGetModelSignature(Pointer model, long index, PointerByReference signature);

    int LiteRtGetNumSignatureInputs(Pointer signature, LongByReference count);

    int LiteRtGetNumSignatureOutputs(Pointer signature, LongByReference count);

    int LiteRtGetSignatureInputTensorByIndex(Pointer signature, long index, PointerByReference tensor);

    int LiteRtGetSignatureOutputTensorByIndex(Pointer signature, long index, PointerByReference tensor);

    int LiteRtGetRankedTensorType(Pointer tensor, Pointer type);

    int LiteRtGetCompiledModelInputBufferRequirements(
            Pointer compiled, long signature, long index, PointerByReference requirements);

    int LiteRtGetCompiledModelOutputBufferRequirements(
            Pointer compiled, long signature, long index, PointerByReference requirements);

    int LiteRtCreateManagedTensorBufferFromRequirements(
            Pointer environment, Pointer type, Pointer requirements, PointerByReference buffer);

    int LiteRtGetTensorBufferPackedSize(Pointer buffer, LongByReference size);

    int LiteRtLockTensorBuffer(Pointer buffer, PointerByReference address, int mode);

    int LiteRtUnlockTensorBuffer(Pointer buffer);

    int LiteRtRunCompiledModel(
            Pointer compiled, long signature, long inputs, Pointer[] in, long outputs, Pointer[] out);

    static void check(int status, String what) {
        if (status != 0) {
            throw new IllegalArgumentException(what + ": status " + status);
        }
    }
}
