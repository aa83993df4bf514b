/* A closed-loop client of two pick services: each connection asks for a pick that holds a place, gives it back, again.
 *
 *   pick_load h1 PORT CONNECTIONS SECONDS BODY_FILE     HTTP/1.1: POST /select_and_reserve, DELETE /reservations/ID
 *   pick_load h2 PORT CONNECTIONS SECONDS BODY_FILE     HTTP/2: one PickStream a connection, pick and release on it
 *
 * BODY_FILE is the pick as it is sent: JSON, in which eight `#` in a row become the question's number, or an encoded
 * PickStreamRequest. As much of HTTP/2 is spoken as one client stream needs: preface, SETTINGS, HEADERS of literals,
 * DATA within the peer's windows, answers to PING and SETTINGS. Prints one JSON object: picks (each given back), errors,
 * seconds, p50 and p99 of picks in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BUFFER 65536
#define MAX_SAMPLES 2000000
#define MAX_CONNECTIONS 256
#define FRAME_HEAD 9

enum { DATA = 0, HEADERS = 1, RESET = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };

struct conn {
  int fd, releasing, dead, idle;
  unsigned char in[BUFFER], message[BUFFER];
  size_t have, got;
  long window, stream_window, number;
  double began;
};

static unsigned char body[BUFFER];
static char *digits;
static size_t body_size;
static long asked, picks, errors, samples;
static float *took;
static int http2;
static double until;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void give_up(struct conn *c) {
  errors++;
  c->dead = 1;
  close(c->fd);
}

static void put(struct conn *c, const void *data, size_t size) {
  for (const char *at = data; size && !c->dead;) {
    ssize_t wrote = write(c->fd, at, size);
    if (wrote < 0) give_up(c);
    else at += wrote, size -= wrote;
  }
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------ */

static uint32_t number32(const unsigned char *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static void frame_head(unsigned char *p, size_t size, int type, int flags, uint32_t stream) {
  unsigned char head[FRAME_HEAD] = {size >> 16, size >> 8, size, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
  memcpy(p, head, FRAME_HEAD);
}

static size_t literal(unsigned char *p, const char *name, const char *value) {
  size_t n = strlen(name), v = strlen(value);
  p[0] = 0, p[1] = n, p[2 + n] = v;
  memcpy(p + 2, name, n);
  memcpy(p + 3 + n, value, v);
  return 3 + n + v;
}

static void open_stream(struct conn *c) {
  unsigned char out[1024], *p = out;
  memcpy(p, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24), p += 24;
  frame_head(p, 6, SETTINGS, 0, 0), p += FRAME_HEAD;
  memcpy(p, "\0\4\x7f\xff\xff\xff", 6), p += 6; /* the answers' window: as large as it can be */
  frame_head(p, 4, WINDOW_UPDATE, 0, 0), p += FRAME_HEAD;
  memcpy(p, "\x7f\xfe\0\0", 4), p += 4;
  unsigned char *head = p;
  p += FRAME_HEAD;
  p += literal(p, ":method", "POST");
  p += literal(p, ":scheme", "http");
  p += literal(p, ":path", "/penstock.router.v1.Router/PickStream");
  p += literal(p, ":authority", "localhost");
  p += literal(p, "content-type", "application/grpc");
  p += literal(p, "te", "trailers");
  frame_head(head, p - head - FRAME_HEAD, HEADERS, 4, 1);
  c->window = c->stream_window = 65535;
  put(c, out, p - out);
}

static void send_message(struct conn *c, const unsigned char *data, size_t size) {
  static unsigned char out[BUFFER];
  size_t whole = size + 5;
  if (whole > 16384) exit((fprintf(stderr, "the pick has %zu bytes, a frame takes 16384\n", size), 2));
  frame_head(out, whole, DATA, 0, 1);
  out[FRAME_HEAD] = 0;
  for (int byte = 0; byte < 4; byte++) out[FRAME_HEAD + 1 + byte] = size >> (24 - 8 * byte);
  memcpy(out + FRAME_HEAD + 5, data, size);
  c->window -= whole, c->stream_window -= whole;
  put(c, out, FRAME_HEAD + whole);
}

/* The bytes of field `wanted` in an encoded message; NULL when it has none. */
static const unsigned char *field(const unsigned char *p, size_t size, unsigned wanted, size_t *length) {
  const unsigned char *end = p + size;
  while (p < end) {
    uint64_t parts[2] = {0, 0};
    for (int part = 0; part < 2 && p < end; part++) {
      int shift = 0;
      while (p < end && *p & 0x80) parts[part] |= (uint64_t)(*p++ & 0x7f) << shift, shift += 7;
      if (p < end) parts[part] |= (uint64_t)*p++ << shift;
      int wire = parts[0] & 7;
      if (part == 0 && (wire == 1 || wire == 5)) {
        p += wire == 1 ? 8 : 4;
        break;
      }
    }
    if ((parts[0] & 7) != 2) continue;
    if (parts[1] > (size_t)(end - p)) return NULL;
    if (parts[0] >> 3 == wanted) return *length = parts[1], p;
    p += parts[1];
  }
  return NULL;
}

/* ---- asking and giving back -------------------------------------------------------------------- */

static void ask(struct conn *c) {
  static char request[BUFFER + 256];
  c->releasing = 0;
  c->number = asked++;
  c->began = now();
  if (http2) return send_message(c, body, body_size);
  long rest = c->number;
  for (int digit = 7; digit >= 0; digit--, rest /= 10) digits[digit] = '0' + rest % 10;
  int head = sprintf(request, "POST /select_and_reserve HTTP/1.1\r\nhost: l\r\ncontent-type: application/json\r\n"
                              "content-length: %zu\r\n\r\n", body_size);
  memcpy(request + head, body, body_size);
  put(c, request, head + body_size);
}

static void give_back(struct conn *c, const unsigned char *lease, size_t size) {
  char request[256];
  c->releasing = 1;
  if (samples < MAX_SAMPLES) took[samples++] = (now() - c->began) * 1e6;
  if (!http2)
    return put(c, request, sprintf(request, "DELETE /reservations/%08ld HTTP/1.1\r\nhost: l\r\n\r\n", c->number));
  unsigned char out[256] = {8, 1, 0x1a, size + 4, 0x0a, size};
  memcpy(out + 6, lease, size);
  memcpy(out + 6 + size, "\x10\1", 2); /* completed */
  send_message(c, out, size + 8);
}

static void answered(struct conn *c, int well, const unsigned char *lease, size_t size) {
  if (!well) return give_up(c);
  if (!c->releasing) return give_back(c, lease, size);
  picks++;
  if (now() < until) ask(c);
  else c->idle = 1; /* everything is given back before the end */
}

static void on_message(struct conn *c) {
  size_t size = 0, lease_size = 0;
  const unsigned char *inner = field(c->message + 5, c->got - 5, c->releasing ? 3 : 2, &size), *lease = NULL;
  if (inner && !c->releasing) lease = field(inner, size, 2, &lease_size);
  int well = inner && (c->releasing || (lease && lease_size < 128));
  c->got = 0;
  answered(c, well, lease, lease_size);
}

/* One frame; 0 when it is not whole yet. */
static size_t take_frame(struct conn *c, const unsigned char *p, size_t have) {
  if (have < FRAME_HEAD) return 0;
  size_t size = p[0] << 16 | p[1] << 8 | p[2];
  int type = p[3], flags = p[4];
  if (have < FRAME_HEAD + size) return 0;
  const unsigned char *payload = p + FRAME_HEAD;
  unsigned char reply[FRAME_HEAD + 8];
  if (type == DATA && c->got + size < BUFFER) {
    memcpy(c->message + c->got, payload, size);
    c->got += size;
    if (c->got >= 5 && c->got == 5 + number32(c->message + 1)) on_message(c);
  } else if (type == SETTINGS && !(flags & 1)) {
    for (size_t at = 0; at + 6 <= size; at += 6)
      if (payload[at] == 0 && payload[at + 1] == 4) c->stream_window += (long)number32(payload + at + 2) - 65535;
    frame_head(reply, 0, SETTINGS, 1, 0);
    put(c, reply, FRAME_HEAD);
  } else if (type == PING && !(flags & 1)) {
    frame_head(reply, 8, PING, 1, 0);
    memcpy(reply + FRAME_HEAD, payload, 8);
    put(c, reply, sizeof reply);
  } else if (type == WINDOW_UPDATE) {
    *(p[8] ? &c->stream_window : &c->window) += number32(payload) & 0x7fffffff;
  } else if (type == RESET || type == GOAWAY || (type == HEADERS && flags & 1)) {
    give_up(c);
  }
  return FRAME_HEAD + size;
}

/* One HTTP/1.1 answer; 0 when it is not whole yet. */
static size_t take_answer(struct conn *c, const unsigned char *p, size_t have) {
  const char *end = memmem(p, have, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = end - (char *)p + 4, length = 0;
  const char *at = memmem(p, head, "content-length: ", 16);
  if (at) length = atol(at + 16);
  if (have < head + length) return 0;
  answered(c, p[9] == '2', NULL, 0);
  return head + length;
}

static void on_readable(struct conn *c) {
  ssize_t read_now = read(c->fd, c->in + c->have, BUFFER - c->have);
  if (read_now <= 0) return give_up(c);
  c->have += read_now;
  size_t at = 0, used;
  while (!c->dead && (used = (http2 ? take_frame : take_answer)(c, c->in + at, c->have - at))) at += used;
  memmove(c->in, c->in + at, c->have -= at);
}

static int order(const void *a, const void *b) {
  float x = *(float *)a, y = *(float *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 6) return fprintf(stderr, "usage: pick_load h1|h2 PORT CONNECTIONS SECONDS BODY_FILE\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  http2 = !strcmp(argv[1], "h2");
  int count = atoi(argv[3]);
  FILE *file = fopen(argv[5], "r");
  if (!file || count < 1 || count > MAX_CONNECTIONS) return perror(argv[5]), 1;
  body_size = fread(body, 1, sizeof body - 1, file);
  fclose(file);
  digits = http2 ? NULL : strstr((char *)body, "########");
  if (!http2 && !digits) return fprintf(stderr, "%s has no place for the question's number\n", argv[5]), 2;
  took = malloc(MAX_SAMPLES * sizeof *took);
  static struct conn all[MAX_CONNECTIONS];
  static struct pollfd polled[MAX_CONNECTIONS];
  asked = getpid() % 1000 * 100000L; /* no number of an earlier run */
  double began = now();
  until = began + atof(argv[4]);
  for (int i = 0; i < count; i++) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(all[i].fd, (void *)&where, sizeof where)) return perror("connect"), 1;
    setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (http2) open_stream(&all[i]);
    ask(&all[i]);
  }
  for (int busy = count; busy && now() < until + 5;) {
    for (int i = 0; i < count; i++) polled[i] = (struct pollfd){.fd = all[i].dead ? -1 : all[i].fd, .events = POLLIN};
    if (poll(polled, count, 100) < 0 && errno != EINTR) return perror("poll"), 1;
    for (int i = 0; i < count; i++)
      if (polled[i].revents && !all[i].dead) on_readable(&all[i]);
    busy = 0;
    for (int i = 0; i < count; i++) busy += !all[i].dead && !all[i].idle;
    for (int i = 0; i < count; i++)
      if (http2 && (all[i].window < 0 || all[i].stream_window < 0)) return fprintf(stderr, "window overrun\n"), 1;
  }
  double seconds = now() - began;
  qsort(took, samples, sizeof *took, order);
  printf("{\"picks\": %ld, \"errors\": %ld, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", picks, errors,
         seconds, samples ? took[samples / 2] : 0.0, samples ? took[samples * 99 / 100] : 0.0);
  return 0;
}
