import java.io.File;
import java.util.Arrays;
import org.apache.maven.repository.internal.MavenRepositorySystemUtils;
import org.eclipse.aether.DefaultRepositorySystemSession;
import org.eclipse.aether.RepositorySystem;
import org.eclipse.aether.artifact.Artifact;
import org.eclipse.aether.artifact.DefaultArtifact;
import org.eclipse.aether.connector.basic.BasicRepositoryConnectorFactory;
import org.eclipse.aether.graph.Dependency;
import org.eclipse.aether.impl.DefaultServiceLocator;
import org.eclipse.aether.repository.LocalRepository;
import org.eclipse.aether.repository.RemoteRepository;
import org.eclipse.aether.repository.RepositoryPolicy;
import org.eclipse.aether.resolution.ArtifactDescriptorRequest;
import org.eclipse.aether.resolution.ArtifactRequest;
import org.eclipse.aether.spi.connector.RepositoryConnectorFactory;
import org.eclipse.aether.spi.connector.transport.TransporterFactory;

/** Maven's own resolver on the folder as a repository: the AAR, its sources, what it depends on. */
public final class Resolve {
    public static void main(String[] arguments) throws Exception {
        DefaultServiceLocator locator = MavenRepositorySystemUtils.newServiceLocator();
        locator.addService(RepositoryConnectorFactory.class, BasicRepositoryConnectorFactory.class);
        locator.addService(TransporterFactory.class, FileTransporterFactory.class);
        RepositorySystem system = locator.getService(RepositorySystem.class);
        DefaultRepositorySystemSession session = MavenRepositorySystemUtils.newSession();
        LocalRepository local = new LocalRepository(new File(arguments[1]));
        session.setLocalRepositoryManager(system.newLocalRepositoryManager(session, local));
        session.setChecksumPolicy(RepositoryPolicy.CHECKSUM_POLICY_FAIL);
        RemoteRepository remote =
                new RemoteRepository.Builder("folder", "default", new File(arguments[0]).toURI().toString()).build();
        for (String name : Arrays.asList(arguments[2] + ":aar:" + arguments[3], arguments[2] + ":jar:sources:" + arguments[3])) {
            Artifact artifact = new DefaultArtifact(name);
            ArtifactRequest request = new ArtifactRequest(artifact, Arrays.asList(remote), null);
            System.out.println("file " + system.resolveArtifact(session, request).getArtifact().getFile());
        }
        Artifact aar = new DefaultArtifact(arguments[2] + ":aar:" + arguments[3]);
        ArtifactDescriptorRequest request = new ArtifactDescriptorRequest(aar, Arrays.asList(remote), null);
        for (Dependency d : system.readArtifactDescriptor(session, request).getDependencies()) {
            System.out.println("needs " + d.getArtifact().getGroupId() + ":" + d.getArtifact().getArtifactId()
                    + ":" + d.getArtifact().getVersion() + " " + d.getScope());
        }
    }
}
