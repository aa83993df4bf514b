/* A worker that costs next to nothing: one fixed reply, or a stream of fixed events at a fixed pace.
 *
 *   backend PORT CHUNKS INTERVAL_MS
 *
 * Every body that holds `"stream":true` is answered with CHUNKS server-sent events INTERVAL_MS apart, `/tokenize` with
 * 404 (there is no tokenizer here), everything else at once with a chat reply of 32 tokens. One thread, epoll, a 1 ms
 * tick while streams are open.
 */
#include "wire.h"

#define MAX_FD 65536
#define BUFFER 65536

struct conn {
  char *in;
  size_t have;
  int left;     /* events still to send, 0 when idle */
  double due;   /* when the next one is */
};

static struct conn conns[MAX_FD];
static int streaming[MAX_FD], streams;
static char reply[4096], event[512];
static size_t reply_size, event_size;
static int chunks;
static double interval;

static const char unknown[] = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
static const char stream_head[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

static void say(int fd, const char *data, size_t n) {
  if (write(fd, data, n) != (ssize_t)n) shutdown(fd, SHUT_RDWR);
}

static void prepare(void) {
  char body[2048], text[512] = "";
  for (int i = 0; i < 32; i++) strcat(text, " token");
  snprintf(body, sizeof body,
           "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
           "\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"length\"}],"
           "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":32,\"total_tokens\":41}}", text);
  reply_size = snprintf(reply, sizeof reply,
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                        strlen(body), body);
  const char *one = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
                    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";
  event_size = snprintf(event, sizeof event, "%zx\r\n%s\r\n", strlen(one), one);
}

static void drop(int fd) {
  for (int i = 0; i < streams; i++)
    if (streaming[i] == fd) { streaming[i] = streaming[--streams]; break; }
  free(conns[fd].in);
  memset(&conns[fd], 0, sizeof conns[fd]);
  close(fd);
}

static void serve(int fd) {
  struct conn *c = &conns[fd];
  for (;;) {
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return;
    size_t head = end - c->in + 4;
    long length = content_length(c->in, head);
    size_t whole = head + (length > 0 ? length : 0);
    if (c->have < whole) return;
    if (!memcmp(c->in, "POST /tokenize ", 15)) {
      say(fd, unknown, sizeof unknown - 1);
    } else if (memmem(c->in + head, whole - head, "\"stream\":true", 13)) {
      say(fd, stream_head, sizeof stream_head - 1);
      c->left = chunks;
      c->due = now_seconds() + interval;
      streaming[streams++] = fd;
    } else {
      say(fd, reply, reply_size);
    }
    memmove(c->in, c->in + whole, c->have - whole);
    c->have -= whole;
  }
}

static void tick(void) {
  double now = now_seconds();
  for (int i = 0; i < streams;) {
    int fd = streaming[i];
    struct conn *c = &conns[fd];
    if (now >= c->due) {
      say(fd, event, event_size);
      c->due += interval;
      if (--c->left == 0) {
        say(fd, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 24);
        streaming[i] = streaming[--streams];
        continue;
      }
    }
    i++;
  }
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: backend PORT CHUNKS INTERVAL_MS\n"), 2;
  chunks = atoi(argv[2]);
  interval = atof(argv[3]) / 1000;
  signal(SIGPIPE, SIG_IGN);
  prepare();
  int listening = socket(AF_INET, SOCK_STREAM, 0), one = 1, poll = epoll_create1(0);
  struct sockaddr_in address = loopback(atoi(argv[1]));
  setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listening, (void *)&address, sizeof address) || listen(listening, 1024)) return perror("backend"), 1;
  set_up(listening);
  struct epoll_event events[512], e = {.events = EPOLLIN, .data.fd = listening};
  epoll_ctl(poll, EPOLL_CTL_ADD, listening, &e);
  for (;;) {
    int n = epoll_wait(poll, events, 512, streams ? 1 : -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listening) {
        int client = accept(listening, 0, 0);
        if (client < 0 || client >= MAX_FD) continue;
        set_up(client);
        conns[client].in = malloc(BUFFER);
        e.data.fd = client;
        epoll_ctl(poll, EPOLL_CTL_ADD, client, &e);
        continue;
      }
      struct conn *c = &conns[fd];
      ssize_t got = read(fd, c->in + c->have, BUFFER - c->have);
      if (got > 0) {
        c->have += got;
        serve(fd);
      } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        drop(fd);
      }
    }
    if (streams) tick();
  }
}
