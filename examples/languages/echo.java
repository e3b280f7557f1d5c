// Sends a message and prints the echo: java echo.java SOCKET MESSAGE
import java.io.IOException;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;

class Echo {
    public static void main(String[] args) throws IOException {
        try (var connection = SocketChannel.open(UnixDomainSocketAddress.of(args[0]))) {
            connection.write(ByteBuffer.wrap(args[1].getBytes())); // all of it: the channel blocks
            connection.shutdownOutput(); // nothing more comes: the server ends its side too
            Channels.newInputStream(connection).transferTo(System.out);
            System.out.flush();
        }
    }
}
