// Prints the answer to an HTTP request: java fetch.java SOCKET PATH
import java.io.IOException;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;

class Fetch {
    public static void main(String[] args) throws IOException {
        try (var connection = SocketChannel.open(UnixDomainSocketAddress.of(args[0]))) {
            // HTTP/1.0: the answer is not in chunks, and ends with the connection.
            connection.write(ByteBuffer.wrap(("GET " + args[1] + " HTTP/1.0\r\n\r\n").getBytes()));
            var answer = new String(Channels.newInputStream(connection).readAllBytes()).split("\r\n\r\n", 2);
            System.out.print(answer[1]);
            System.exit(answer[0].contains(" 200 ") ? 0 : 1);
        }
    }
}
