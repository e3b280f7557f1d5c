// The plainest fast echo in C: a blocking thread for each connection.
//
//     echo_thread PATH [stream|seqpacket|datagram]
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listen.h"

static void *serve(void *arg)
{
	int fd = (int)(long)arg;
	char *buf = malloc(BUFFER);
	for (;;) {
		ssize_t n = recv(fd, buf, BUFFER, 0);
		if (n <= 0)
			break;
		for (ssize_t sent = 0; sent < n;) {
			ssize_t w = send(fd, buf + sent, n - sent, MSG_NOSIGNAL);
			if (w < 0)
				goto end;
			sent += w;
		}
	}
end:
	free(buf);
	close(fd);
	return NULL;
}

static void serve_datagrams(int fd)
{
	char *buf = malloc(BUFFER);
	for (;;) {
		struct sockaddr_un from;
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(fd, buf, BUFFER, 0, (struct sockaddr *)&from, &len);
		if (n >= 0)
			sendto(fd, buf, n, MSG_NOSIGNAL, (struct sockaddr *)&from, len);
	}
}

int main(int argc, char **argv)
{
	int type = type_of(argc, argv);
	int fd = listen_at(argv[1], type);
	if (type == SOCK_DGRAM)
		serve_datagrams(fd);
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int conn = accept(fd, NULL, NULL);
		pthread_t t;
		if (conn >= 0 && pthread_create(&t, &small, serve, (void *)(long)conn) != 0)
			close(conn);
	}
}
