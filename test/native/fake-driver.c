/*
 * A libcuda.so.1 that has as much of a driver as the CUDA runtime asks for when it counts devices, in the state that the
 * environment names: FAKE_CUDA_VERSION (13000 for 13.0), FAKE_CUDA_INIT (what cuInit returns), FAKE_CUDA_DEVICES (how many).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

int cuInit(unsigned flags) {
  (void)flags;
  return number("FAKE_CUDA_INIT");
}
int cuDriverGetVersion(int *version) {
  *version = number("FAKE_CUDA_VERSION");
  return 0;
}
int cuDeviceGetCount(int *count) {
  *count = number("FAKE_CUDA_DEVICES");
  return 0;
}
/* Any other function fails as an unknown error (999). */
static int otherwise(void) { return 999; }

int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *status) {
  (void)version;
  (void)flags;
  const char *const known[] = {"cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetProcAddress"};
  *function = (void *)otherwise;
  for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp(symbol, known[i]) == 0)
      *function = i == 0   ? (void *)cuInit
                  : i == 1 ? (void *)cuDriverGetVersion
                  : i == 2 ? (void *)cuDeviceGetCount
                           : (void *)cuGetProcAddress_v2;
  if (status) *status = 0;
  return 0;
}
int cuGetProcAddress(const char *symbol, void **function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, 0);
}
