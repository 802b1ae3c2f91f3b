/* Between the interface of wasi:http and function.c. An instance serves one request, so nothing is freed. */
#include "wasmk.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TYPES "wasi:http/types@0.2.12"
#define STREAMS "wasi:io/streams@0.2.12"
#define FROM(module, name) __attribute__((import_module(module), import_name(name)))

FROM(TYPES, "[method]incoming-request.method") void request_method(int32_t, void *);
FROM(TYPES, "[method]incoming-request.path-with-query") void request_path(int32_t, void *);
FROM(TYPES, "[method]incoming-request.headers") int32_t request_headers(int32_t);
FROM(TYPES, "[method]incoming-request.consume") void request_consume(int32_t, void *);
FROM(TYPES, "[method]incoming-body.stream") void body_stream(int32_t, void *);
FROM(STREAMS, "[method]input-stream.blocking-read") void stream_read(int32_t, int64_t, void *);
FROM(TYPES, "[constructor]fields") int32_t fields_new(void);
FROM(TYPES, "[method]fields.get") void fields_get(int32_t, const char *, size_t, void *);
FROM(TYPES, "[method]fields.append")
void fields_append(int32_t, const char *, size_t, const char *, size_t, void *);
FROM(TYPES, "[constructor]outgoing-response") int32_t response_new(int32_t);
FROM(TYPES, "[method]outgoing-response.set-status-code") int32_t response_status(int32_t, int32_t);
FROM(TYPES, "[method]outgoing-response.body") void response_body(int32_t, void *);
FROM(TYPES, "[static]response-outparam.set")
void outparam_set(int32_t, int32_t, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
FROM(TYPES, "[method]outgoing-body.write") void body_write(int32_t, void *);
FROM(STREAMS, "[method]output-stream.blocking-write-and-flush")
void stream_write(int32_t, const char *, size_t, void *);
FROM(STREAMS, "[resource-drop]output-stream") void stream_drop(int32_t);
FROM(TYPES, "[static]outgoing-body.finish") void body_finish(int32_t, int32_t, int32_t, void *);

/* What a call gives back: which of its cases (0 is success), and that case's value. */
struct result {
  _Alignas(8) uint8_t which;
  union {
    int32_t handle;
    struct {
      char *bytes;
      size_t size;
    } list;
    int32_t more[8];
  };
};

enum { READ = 64 << 10, WRITE = 4096 };

static int32_t incoming, outparam, answered;

/* The runtime puts what it gives the function here. */
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t size, size_t align, size_t new) {
  (void)size;
  if (new == 0)
    return (void *)align;
  void *at = realloc(old, new);
  if (!at)
    abort();
  return at;
}

static char *text(const char *bytes, size_t size) {
  char *copy = cabi_realloc(NULL, 0, 1, size + 1);
  memcpy(copy, bytes, size);
  copy[size] = 0;
  return copy;
}

static const char *method(void) {
  static const char *const names[] = {"GET",     "HEAD",    "POST",  "PUT",  "DELETE",
                                      "CONNECT", "OPTIONS", "TRACE", "PATCH"};
  struct result result;
  request_method(incoming, &result);
  if (result.which < sizeof names / sizeof *names)
    return names[result.which];
  return text(result.list.bytes, result.list.size);
}

static const char *path(void) {
  struct result result;
  request_path(incoming, &result);
  return result.which ? text(result.list.bytes, result.list.size) : "/";
}

static void read_body(struct request *request) {
  struct result result;
  char *all = cabi_realloc(NULL, 0, 1, 1);
  size_t size = 0;
  request_consume(incoming, &result);
  if (!result.which) {
    body_stream(result.handle, &result);
    int32_t stream = result.handle;
    for (int open = !result.which; open;) {
      stream_read(stream, READ, &result);
      open = !result.which;
      if (open) {
        all = cabi_realloc(all, 0, 1, size + result.list.size + 1);
        memcpy(all + size, result.list.bytes, result.list.size);
        free(result.list.size ? result.list.bytes : NULL);
        size += result.list.size;
      }
    }
  }
  all[size] = 0;
  request->body = all;
  request->size = size;
}

const char *header(const struct request *request, const char *name) {
  (void)request;
  struct {
    struct {
      const char *bytes;
      size_t size;
    } *values;
    size_t count;
  } found;
  fields_get(request_headers(incoming), name, strlen(name), &found);
  return found.count ? text(found.values[0].bytes, found.values[0].size) : NULL;
}

void answer_bytes(int status, const char *content_type, const void *bytes, size_t size) {
  if (answered++)
    return;
  struct result result;
  int32_t fields = fields_new();
  fields_append(fields, "content-type", strlen("content-type"), content_type, strlen(content_type), &result);
  int32_t response = response_new(fields);
  response_status(response, status);
  response_body(response, &result);
  int32_t body = result.handle;
  outparam_set(outparam, 0, response, 0, 0, 0, 0, 0, 0);
  body_write(body, &result);
  int32_t stream = result.handle;
  for (size_t sent = 0; sent < size; sent += WRITE) {
    size_t piece = size - sent < WRITE ? size - sent : WRITE;
    stream_write(stream, (const char *)bytes + sent, piece, &result);
    if (result.which)
      break;
  }
  stream_drop(stream);
  body_finish(body, 0, 0, &result);
}

void answer(int status, const char *content_type, const char *format, ...) {
  va_list values, again;
  va_start(values, format);
  va_copy(again, values);
  int size = vsnprintf(NULL, 0, format, values);
  char *all = cabi_realloc(NULL, 0, 1, (size_t)size + 1);
  vsnprintf(all, (size_t)size + 1, format, again);
  answer_bytes(status, content_type, all, (size_t)size);
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.12#handle"))) void serve(int32_t in, int32_t out) {
  incoming = in;
  outparam = out;
  answered = 0;
  struct request request = {.method = method(), .path = path()};
  read_body(&request);
  handle(&request);
  answer(500, "text/plain", "the function gave no answer\n");
}
