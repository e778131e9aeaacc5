package @ID@;

import android.content.res.AssetFileDescriptor;
import android.content.res.AssetManager;

import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;

/** The package's files, from the app's assets. */
final class Assets {
    private final AssetManager manager;

    Assets(AssetManager manager) {
        this.manager = manager;
    }

    byte[] read(String name) throws IOException {
        InputStream stream = manager.open(Contract.FOLDER + name);
        try {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream();
            byte[] block = new byte[1 << 16];
            for (int n = stream.read(block); n >= 0; n = stream.read(block)) {
                bytes.write(block, 0, n);
            }
            return bytes.toByteArray();
        } finally {
            stream.close();
        }
    }

    /** Mapped where the app stored the asset, else (the app compressed it) read into memory. */
    ByteBuffer map(String name) throws IOException {
        AssetFileDescriptor file;
        try {
            file = manager.openFd(Contract.FOLDER + name);
        } catch (FileNotFoundException compressed) {
            return buffer(read(name));
        }
        try {
            FileInputStream stream = new FileInputStream(file.getFileDescriptor());
            try {
                return stream.getChannel()
                        .map(FileChannel.MapMode.READ_ONLY, file.getStartOffset(), file.getDeclaredLength())
                        .order(ByteOrder.nativeOrder());
            } finally {
                stream.close();
            }
        } finally {
            file.close();
        }
    }

    Tensor tensor(String name, String dtype, int[] shape) throws IOException {
        // The files are little-endian, as every processor that Android runs on.
        return new Tensor(dtype, shape, buffer(read(name)));
    }

    private static ByteBuffer buffer(byte[] bytes) {
        ByteBuffer buffer = Tensor.allocate(bytes.length);
        buffer.put(bytes);
        buffer.rewind();
        return buffer;
    }
}
