import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.net.URI;
import org.eclipse.aether.RepositorySystemSession;
import org.eclipse.aether.repository.RemoteRepository;
import org.eclipse.aether.spi.connector.transport.AbstractTransporter;
import org.eclipse.aether.spi.connector.transport.GetTask;
import org.eclipse.aether.spi.connector.transport.PeekTask;
import org.eclipse.aether.spi.connector.transport.PutTask;
import org.eclipse.aether.spi.connector.transport.Transporter;
import org.eclipse.aether.spi.connector.transport.TransporterFactory;

/** Reads a repository from a folder; Maven ships only the transport over HTTP in its own lib folder. */
public final class FileTransporterFactory implements TransporterFactory {
    @Override
    public Transporter newInstance(RepositorySystemSession session, RemoteRepository repository) {
        final File root = new File(URI.create(repository.getUrl()));
        return new AbstractTransporter() {
            @Override
            public int classify(Throwable error) {
                return error instanceof FileNotFoundException ? ERROR_NOT_FOUND : ERROR_OTHER;
            }

            @Override
            protected void implPeek(PeekTask task) throws Exception {
                file(task.getLocation());
            }

            @Override
            protected void implGet(GetTask task) throws Exception {
                File file = file(task.getLocation());
                utilGet(task, new FileInputStream(file), true, file.length(), false);
            }

            @Override
            protected void implPut(PutTask task) {
                throw new UnsupportedOperationException();
            }

            @Override
            protected void implClose() {}

            private File file(URI location) throws FileNotFoundException {
                File file = new File(root, location.getPath());
                if (!file.isFile()) {
                    throw new FileNotFoundException(file.toString());
                }
                return file;
            }
        };
    }

    @Override
    public float getPriority() {
        return 100;
    }
}
