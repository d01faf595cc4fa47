/* A web server for one page: $SITE/index.html at /, "ok" at /health.
 *
 *   server PORT      serves until SIGTERM
 *   server --check   asks the server on port 8080 for /health: the container's health check
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, struct MHD_Response *response, const char *type)
{
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", type);
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result words(struct MHD_Connection *connection, unsigned status, const char *text)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(strlen(text), (void *)text, MHD_RESPMEM_PERSISTENT);
    return answer(connection, status, response, "text/plain");
}

static enum MHD_Result page(struct MHD_Connection *connection)
{
    char path[4096];
    const char *site = getenv("SITE");
    snprintf(path, sizeof path, "%s/index.html", site ? site : ".");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (file < 0 || fstat(file, &about) < 0)
        return words(connection, MHD_HTTP_NOT_FOUND, "not found\n");
    return answer(connection, MHD_HTTP_OK, MHD_create_response_from_fd((size_t)about.st_size, file), "text/html; charset=utf-8");
}

static enum MHD_Result request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                               const char *version, const char *upload, size_t *upload_size, void **state)
{
    (void)context, (void)version, (void)upload, (void)upload_size, (void)state;
    printf("%s %s\n", method, url);
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return words(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET\n");
    if (strcmp(url, "/health") == 0)
        return words(connection, MHD_HTTP_OK, "ok\n");
    if (strcmp(url, "/") == 0)
        return page(connection);
    return words(connection, MHD_HTTP_NOT_FOUND, "not found\n");
}

static int check(void)
{
    const char ask[] = "GET /health HTTP/1.0\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    char reply[64] = "";
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof address) < 0)
        return 1;
    if (write(s, ask, sizeof ask - 1) != (ssize_t)sizeof ask - 1 || read(s, reply, sizeof reply - 1) <= 0)
        return 1;
    return strstr(reply, " 200 ") ? 0 : 1;
}

int main(int count, char **arguments)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count == 2 && strcmp(arguments[1], "--check") == 0)
        return check();
    int port = count == 2 ? atoi(arguments[1]) : 0;
    if (port < 1 || port > 65535) {
        fprintf(stderr, "usage: server PORT | server --check\n");
        return 2;
    }
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    struct MHD_Daemon *server =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD, (uint16_t)port, NULL, NULL, request, NULL, MHD_OPTION_END);
    if (!server) {
        perror("server");
        return 1;
    }
    printf("listening on port %d\n", port);
    int signal;
    sigwait(&stop, &signal);
    MHD_stop_daemon(server);
    return 0;
}
