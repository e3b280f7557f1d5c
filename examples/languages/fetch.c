// Prints the answer to an HTTP request: ./fetch SOCKET PATH
#include <curl/curl.h>
#include <err.h>
#include <stdio.h>

int main(int argc, char **argv) {
	char url[1000];
	if (argc != 3 || snprintf(url, sizeof url, "http://localhost%s", argv[2]) >= (int)sizeof url)
		errx(2, "usage: fetch SOCKET PATH");
	CURL *request = curl_easy_init();
	curl_easy_setopt(request, CURLOPT_UNIX_SOCKET_PATH, argv[1]);
	curl_easy_setopt(request, CURLOPT_URL, url);
	curl_easy_setopt(request, CURLOPT_FAILONERROR, 1L); // 404 is an error
	CURLcode result = curl_easy_perform(request);       // writes to standard output
	if (result != CURLE_OK)
		errx(1, "%s: %s", argv[1], curl_easy_strerror(result));
	curl_easy_cleanup(request);
}
