/* A closed-loop HTTP client: N connections, each sends the next request when its answer is whole.
 *
 *   load PORT CONNECTIONS SECONDS BODY_FILE
 *
 * Eight `#` in a row in the body are replaced by the request's number, so that no two prompts are equal.
 * Prints one JSON object: answers, errors (any status but 200, any broken answer), bytes, seconds, p50 and p99 in
 * milliseconds. Both forms of answers are understood: with a length, and chunked.
 */
#include "wire.h"

#define BUFFER 262144
#define MAX_SAMPLES 4000000

struct conn {
  int fd;
  char in[BUFFER];
  size_t have, written;
  double began;
};

static char request[65536];
static size_t request_size;
static char *number; /* where the request's number stands, NULL for nowhere */
static long asked, answers, errors, bytes, samples;
static float *took;

static void ask(struct conn *c) {
  c->have = 0;
  c->began = now_seconds();
  long rest = asked++;
  for (int digit = 7; number && digit >= 0; digit--, rest /= 10) number[digit] = '0' + rest % 10;
  if (write(c->fd, request, request_size) != (ssize_t)request_size) errors++;
}

/* 1 when the answer is whole, 0 when more must come. */
static int whole(struct conn *c) {
  char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = end - c->in + 4;
  long length = content_length(c->in, head);
  if (length >= 0) return c->have >= head + length;
  return c->have >= head + 5 && !memcmp(c->in + c->have - 5, "0\r\n\r\n", 5);
}

static int order(const void *a, const void *b) {
  float x = *(float *)a, y = *(float *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS BODY_FILE\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  int port = atoi(argv[1]), count = atoi(argv[2]);
  double seconds = atof(argv[3]);
  char body[32768];
  FILE *file = fopen(argv[4], "r");
  if (!file) return perror(argv[4]), 1;
  size_t size = fread(body, 1, sizeof body, file);
  fclose(file);
  request_size = snprintf(request, sizeof request,
                          "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                          "Accept: */*\r\nUser-Agent: load\r\nContent-Length: %zu\r\n\r\n", size);
  memcpy(request + request_size, body, size);
  request_size += size;
  number = memmem(request, request_size, "########", 8);
  took = malloc(sizeof *took * MAX_SAMPLES);
  struct conn *conns = calloc(count, sizeof *conns);
  int poll = epoll_create1(0);
  struct sockaddr_in address = loopback(port);
  double start = now_seconds();
  for (int i = 0; i < count; i++) {
    conns[i].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(conns[i].fd, (void *)&address, sizeof address)) return perror("connect"), 1;
    set_up(conns[i].fd);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conns[i]};
    epoll_ctl(poll, EPOLL_CTL_ADD, conns[i].fd, &e);
    ask(&conns[i]);
  }
  struct epoll_event events[512];
  while (now_seconds() - start < seconds) {
    int n = epoll_wait(poll, events, 512, 100);
    for (int i = 0; i < n; i++) {
      struct conn *c = events[i].data.ptr;
      ssize_t got = read(c->fd, c->in + c->have, BUFFER - c->have);
      if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        errors++;
        epoll_ctl(poll, EPOLL_CTL_DEL, c->fd, 0);
        continue;
      }
      c->have += got;
      bytes += got;
      if (!whole(c)) continue;
      if (strncmp(c->in, "HTTP/1.1 200", 12)) errors++;
      answers++;
      if (samples < MAX_SAMPLES) took[samples++] = (now_seconds() - c->began) * 1e3;
      ask(c);
    }
  }
  double elapsed = now_seconds() - start;
  qsort(took, samples, sizeof *took, order);
  printf("{\"answers\":%ld,\"errors\":%ld,\"bytes\":%ld,\"seconds\":%.4f,\"p50_ms\":%.3f,\"p99_ms\":%.3f}\n", answers,
         errors, bytes, elapsed, samples ? took[samples / 2] : 0, samples ? took[samples * 99 / 100] : 0);
  return 0;
}
