// Sends a message and prints the echo: ./echo SOCKET MESSAGE
#include <err.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path) // 107 bytes and the NUL
		errx(2, "usage: echo SOCKET MESSAGE");
	strcpy(address.sun_path, argv[1]);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		err(1, "connect to %s", argv[1]);
	if (send(fd, argv[2], strlen(argv[2]), MSG_NOSIGNAL) < 0) // all of it: the socket blocks
		err(1, "send");
	shutdown(fd, SHUT_WR); // nothing more comes: the server ends its side too
	char chunk[16];
	for (ssize_t n; (n = recv(fd, chunk, sizeof chunk, 0)) != 0; fwrite(chunk, 1, n, stdout))
		if (n < 0)
			err(1, "receive");
}
