package android.content.res;

import java.io.Closeable;
import java.io.FileDescriptor;
import java.io.IOException;
import java.io.RandomAccessFile;

/** A stored entry of an APK. */
public class AssetFileDescriptor implements Closeable {
    private final RandomAccessFile file;
    private final long offset;
    private final long length;

    AssetFileDescriptor(RandomAccessFile file, long offset, long length) {
        this.file = file;
        this.offset = offset;
        this.length = length;
    }

    public FileDescriptor getFileDescriptor() {
        try {
            return file.getFD();
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    public long getStartOffset() {
        return offset;
    }

    public long getDeclaredLength() {
        return length;
    }

    public void close() throws IOException {
        file.close();
    }
}
