// The fastest plain echo in C: one thread, level-triggered epoll, one buffer.
// What a client does not take at once is kept for it, and meanwhile it is not
// read from.
//
//     echo_epoll PATH [stream|seqpacket] [sleeper]
//
// With a sleeper there is a second thread, which sleeps: then the kernel counts the
// references to each descriptor, as it does for every program of several threads.
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listen.h"

struct rest {
	char *buf;
	ssize_t len, sent;
};

static struct rest rests[1 << 16];
static char buf[BUFFER];
static int ep;

static void watch(int op, int fd, unsigned events)
{
	struct epoll_event ev = {.events = events, .data.fd = fd};
	epoll_ctl(ep, op, fd, &ev);
}

static void end(int fd)
{
	free(rests[fd].buf);
	memset(&rests[fd], 0, sizeof rests[fd]);
	close(fd);
}

// flush sends what is left; it reports whether all of it is gone.
static int flush(int fd, char *p, ssize_t len)
{
	struct rest *r = &rests[fd];
	ssize_t sent = 0;
	while (sent < len) {
		ssize_t w = send(fd, p + sent, len - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (w >= 0) {
			sent += w;
			continue;
		}
		if (errno != EAGAIN) {
			end(fd);
			return 0;
		}
		if (r->buf == NULL) {
			r->len = len - sent;
			r->buf = malloc(r->len);
			memcpy(r->buf, p + sent, r->len);
			watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
		} else {
			r->sent += sent;
		}
		return 0;
	}
	if (r->buf != NULL) {
		free(r->buf);
		memset(r, 0, sizeof *r);
		watch(EPOLL_CTL_MOD, fd, EPOLLIN);
	}
	return 1;
}

static void *sleeper(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	if (argc > 3 && strcmp(argv[3], "sleeper") == 0 && pthread_create(&thread, NULL, sleeper, NULL) != 0)
		return 1;
	int fd = listen_at(argv[1], type_of(argc, argv));
	struct epoll_event events[256];
	ep = epoll_create1(0);
	watch(EPOLL_CTL_ADD, fd, EPOLLIN);
	for (;;) {
		int n = epoll_wait(ep, events, 256, -1);
		for (int i = 0; i < n; i++) {
			int conn = events[i].data.fd;
			if (conn == fd) {
				int c = accept(fd, NULL, NULL);
				if (c >= 0)
					watch(EPOLL_CTL_ADD, c, EPOLLIN);
				continue;
			}
			struct rest *r = &rests[conn];
			if (r->buf != NULL) {
				flush(conn, r->buf + r->sent, r->len - r->sent);
				continue;
			}
			ssize_t got = recv(conn, buf, BUFFER, MSG_DONTWAIT);
			if (got > 0)
				flush(conn, buf, got);
			else if (got == 0 || errno != EAGAIN)
				end(conn);
		}
	}
}
