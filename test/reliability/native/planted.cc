/*
 * An addon that makes an error on purpose when node loads it, for the proof that the sanitizers, with the flags and options of
 * sanitize.ts, see each kind: PLANTED is overflow, stale, leak, undefined or race.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>

static volatile int zero = 0, sink; /* the compiler knows nothing of them */

static void overflow() {
  float *x = (float *)malloc(10 * sizeof(float));
  memset(x, 0, 10 * sizeof(float));
  sink = (int)x[10 + zero];
  free(x);
}

static void stale() {
  int *x = (int *)malloc(sizeof(int));
  *x = 1;
  free(x);
  sink = x[zero];
}

static void leak() {
  int *x = (int *)malloc(1000 + (size_t)zero);
  x[zero] = 1;
  sink = x[0];
  x = nullptr;
}

static void undefined() {
  const int one = 1 + zero;
  sink = 2147483647 + one;
}

static void race() {
  int64_t count = 0;
  std::thread other([&] {
    for (int i = 0; i < 100000; i++) *(volatile int64_t *)&count += 1;
  });
  for (int i = 0; i < 100000; i++) *(volatile int64_t *)&count += 1;
  other.join();
  sink = (int)count;
}

static void plant(const char *what) {
  if (strcmp(what, "overflow") == 0) return overflow();
  if (strcmp(what, "stale") == 0) return stale();
  if (strcmp(what, "leak") == 0) return leak();
  if (strcmp(what, "undefined") == 0) return undefined();
  if (strcmp(what, "race") == 0) return race();
  fprintf(stderr, "PLANTED is overflow, stale, leak, undefined or race\n");
  exit(2);
}

/* What node calls when it has loaded an addon (napi_env, napi_value); here nothing is returned to JavaScript. */
extern "C" __attribute__((visibility("default"))) void *napi_register_module_v1(void *, void *) {
  const char *what = getenv("PLANTED");
  plant(what ? what : "");
  return nullptr;
}
