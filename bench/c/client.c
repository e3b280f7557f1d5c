// A blocking C client on one stream connection: rate and latency of echoes, or
// with a size over 1 MiB in all the time of a pump, both directions at once.
//
//     client PATH SIZE SECONDS     prints: messages/s p50-ns p99-ns
//     client PATH pump BYTES       prints: bytes/s
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

struct pump {
	int fd;
	long long bytes;
};

static void *writer(void *arg)
{
	struct pump *p = arg;
	char *buf = calloc(1, BUFFER);
	for (long long left = p->bytes; left > 0;) {
		ssize_t n = send(p->fd, buf, left < BUFFER ? left : BUFFER, 0);
		if (n < 0)
			fail("send");
		left -= n;
	}
	shutdown(p->fd, SHUT_WR);
	free(buf);
	return NULL;
}

static void pump(const char *path, long long bytes)
{
	struct pump p = {dial(path), bytes};
	char *buf = malloc(BUFFER);
	long long start = now(), got = 0;
	pthread_t t;
	pthread_create(&t, NULL, writer, &p);
	for (ssize_t n; (n = recv(p.fd, buf, BUFFER, 0)) > 0;)
		got += n;
	pthread_join(t, NULL);
	if (got != bytes) {
		fprintf(stderr, "%lld bytes are back of %lld\n", got, bytes);
		exit(1);
	}
	printf("%.0f\n", got * 1e9 / (now() - start));
}

static int by_size(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: %s PATH SIZE SECONDS | PATH pump BYTES\n", argv[0]);
		return 2;
	}
	if (strcmp(argv[2], "pump") == 0) {
		pump(argv[1], atoll(argv[3]));
		return 0;
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
