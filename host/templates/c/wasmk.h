/* One HTTP request and its answer. wasmk.c stands between this and wasi:http. */
#pragma once
#include <stddef.h>

struct request {
  const char *method; /* GET, POST, … */
  const char *path;   /* with the query, from the first slash */
  const char *body;   /* size bytes, and a zero behind them */
  size_t size;
};

/* The first value of one of the request's headers, or NULL. */
const char *header(const struct request *request, const char *name);

/* Answers with the text that printf would print; only the first call of a request counts. */
void answer(int status, const char *content_type, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Answers with these bytes. */
void answer_bytes(int status, const char *content_type, const void *bytes, size_t size);

/* Yours: called for each request. A request that is not answered is answered with status 500. */
void handle(const struct request *request);
