// A blocking C client on one stream connection: rate and latency of echoes, or
// a pump of standard input to standard output, both directions at once.
//
//     client PATH SIZE SECONDS     prints: messages/s p50-ns p99-ns
//     client PATH < IN > OUT
#include <pthread.h>
#include <time.h>

#include "listen.h"

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int dial(const char *path)
{
	struct sockaddr_un a = address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		perror(path);
		exit(1);
	}
	return fd;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void *writer(void *arg)
{
	int fd = (int)(long)arg;
	char *buf = malloc(BUFFER);
	for (ssize_t n; (n = read(0, buf, BUFFER)) > 0;)
		for (ssize_t sent = 0, w; sent < n; sent += w)
			if ((w = send(fd, buf + sent, n - sent, 0)) < 0)
				fail("send");
	shutdown(fd, SHUT_WR);
	free(buf);
	return NULL;
}

static void pump(const char *path)
{
	int fd = dial(path);
	char *buf = malloc(BUFFER);
	pthread_t t;
	pthread_create(&t, NULL, writer, (void *)(long)fd);
	for (ssize_t n; (n = recv(fd, buf, BUFFER, 0)) > 0;)
		for (ssize_t done = 0, w; done < n; done += w)
			if ((w = write(1, buf + done, n - done)) < 0)
				fail("write");
	pthread_join(t, NULL);
	free(buf);
}

static int by_size(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	if (argc == 2) {
		pump(argv[1]);
		return 0;
	}
	if (argc != 4) {
		fprintf(stderr, "usage: %s PATH SIZE SECONDS | PATH < IN > OUT\n", argv[0]);
		return 2;
	}
	ssize_t size = atol(argv[2]);
	long long until = atof(argv[3]) * 1e9;
	int fd = dial(argv[1]);
	char *out = malloc(size), *in = malloc(size);
	memset(out, 'x', size);
	size_t room = 1 << 24, n = 0;
	unsigned *took = malloc(room * sizeof *took);
	long long start = now(), before = start, after;
	do {
		if (send(fd, out, size, 0) != size)
			fail("send");
		for (ssize_t got = 0; got < size;) {
			ssize_t r = recv(fd, in + got, size - got, 0);
			if (r <= 0)
				fail("recv");
			got += r;
		}
		if (memcmp(in, out, size) != 0) {
			fprintf(stderr, "what is back is not what was sent\n");
			return 1;
		}
		after = now();
		if (n < room)
			took[n++] = after - before;
		before = after;
	} while (after - start < until);
	qsort(took, n, sizeof *took, by_size);
	printf("%.0f %u %u\n", n * 1e9 / (after - start), took[n / 2], took[n * 99 / 100]);
	return 0;
}
