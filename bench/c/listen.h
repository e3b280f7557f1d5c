// What the C programs have alike.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER (64 << 10)

static inline int type_of(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: %s PATH [stream|seqpacket|datagram]\n", argv[0]);
		exit(2);
	}
	if (argc > 2 && strcmp(argv[2], "seqpacket") == 0)
		return SOCK_SEQPACKET;
	if (argc > 2 && strcmp(argv[2], "datagram") == 0)
		return SOCK_DGRAM;
	return SOCK_STREAM;
}

static inline struct sockaddr_un address(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof a.sun_path) {
		fprintf(stderr, "%s: longer than sun_path\n", path);
		exit(1);
	}
	strcpy(a.sun_path, path);
	return a;
}

static inline int listen_at(const char *path, int type)
{
	struct sockaddr_un a = address(path);
	int fd = socket(AF_UNIX, type, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || (type != SOCK_DGRAM && listen(fd, 4096) < 0)) {
		perror(path);
		exit(1);
	}
	return fd;
}
