// Connects, has 64 bytes echoed and closes, again and again, in so many threads:
// prints how often in a second.
//
//     connect PATH THREADS SECONDS
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "listen.h"

static struct sockaddr_un server;
static atomic_long echoes;
static atomic_int over;

static void *client(void *unused)
{
	char buf[64] = {0};
	(void)unused;
	while (!over) {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0 ||
		    send(fd, buf, sizeof buf, MSG_NOSIGNAL) != sizeof buf || recv(fd, buf, sizeof buf, MSG_WAITALL) != sizeof buf) {
			perror("connect");
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
	for (int i = atoi(argv[2]); i > 0; i--) {
		pthread_t t;
		if (pthread_create(&t, NULL, client, NULL) != 0)
			return 1;
	}
	int seconds = atoi(argv[3]);
	sleep(seconds);
	over = 1;
	printf("%ld\n", echoes / seconds);
	return 0;
}
