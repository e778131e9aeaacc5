package android.content.res;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** The assets of an APK, with Android's rule: only stored entries have a file descriptor. */
public final class AssetManager {
    private final String apk;

    public AssetManager(String apk) {
        this.apk = apk;
    }

    public InputStream open(String name) throws IOException {
        ZipFile zip = new ZipFile(apk);
        return zip.getInputStream(entry(zip, name));
    }

    public AssetFileDescriptor openFd(String name) throws IOException {
        try (ZipFile zip = new ZipFile(apk)) {
            ZipEntry entry = entry(zip, name);
            if (entry.getMethod() != ZipEntry.STORED) {
                throw new FileNotFoundException(name + " is probably compressed");
            }
            RandomAccessFile file = new RandomAccessFile(apk, "r");
            return new AssetFileDescriptor(file, offset(file, entry.getName()), entry.getSize());
        }
    }

    private static ZipEntry entry(ZipFile zip, String name) throws IOException {
        ZipEntry entry = zip.getEntry("assets/" + name);
        if (entry == null) {
            throw new FileNotFoundException(name);
        }
        return entry;
    }

    /** Where an entry's data begins: by way of the central directory to its local header. */
    private static long offset(RandomAccessFile file, String name) throws IOException {
        byte[] bytes = new byte[(int) file.length()];
        file.readFully(bytes);
        ByteBuffer zip = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        int end = bytes.length - 22;
        while (zip.getInt(end) != 0x06054b50) {
            end--;
        }
        int at = zip.getInt(end + 16);
        while (zip.getInt(at) == 0x02014b50) {
            int length = zip.getShort(at + 28);
            if (new String(bytes, at + 46, length, "UTF-8").equals(name)) {
                int local = zip.getInt(at + 42);
                return local + 30 + zip.getShort(local + 26) + zip.getShort(local + 28);
            }
            at += 46 + length + zip.getShort(at + 30) + zip.getShort(at + 32);
        }
        throw new FileNotFoundException(name);
    }
}
