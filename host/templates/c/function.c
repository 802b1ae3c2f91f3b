#include "wasmk.h"

#include <stdlib.h>

void handle(const struct request *request) {
  (void)request;
  const char *target = getenv("TARGET");
  answer(200, "text/plain", "hello %s\n", target ? target : "world");
}
