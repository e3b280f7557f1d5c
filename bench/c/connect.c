// Connects, has 64 bytes echoed and closes, again and again, in so many threads:
// prints how often in a second, and the server's processor time for each in µs.
//
//     connect PATH THREADS SECONDS
#define _GNU_SOURCE // struct ucred
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "listen.h"

static struct sockaddr_un server;
static atomic_long echoes;
static atomic_int over;

static int connected(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0) {
		perror("connect");
		exit(1);
	}
	return fd;
}

// used returns the processor time of the process that listens, in µs. The
// clock's id is made as clock_getcpuclockid(3) does.
static double used(void)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	struct timespec t;
	int fd = connected();
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || clock_gettime(~peer.pid << 3 | 2, &t) < 0) {
		perror("clock_gettime");
		exit(1);
	}
	close(fd);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void *client(void *unused)
{
	char buf[64] = {0};
	(void)unused;
	while (!over) {
		int fd = connected();
		if (send(fd, buf, sizeof buf, MSG_NOSIGNAL) != sizeof buf || recv(fd, buf, sizeof buf, MSG_WAITALL) != sizeof buf) {
			perror("echo");
			exit(1);
		}
		close(fd);
		echoes++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: %s PATH THREADS SECONDS\n", argv[0]);
		return 2;
	}
	server = address(argv[1]);
	double before = used();
	for (int i = atoi(argv[2]); i > 0; i--) {
		pthread_t t;
		if (pthread_create(&t, NULL, client, NULL) != 0)
			return 1;
	}
	int seconds = atoi(argv[3]);
	sleep(seconds);
	over = 1;
	double after = used();
	printf("%ld/s %.2fµs\n", echoes / seconds, (after - before) / echoes);
	return 0;
}
