/*
 * The CPU backend: one table of functions whose operations go to the kernels of the instruction set chosen when the
 * device was opened, and the choice itself.
 *
 * Environment: DIFFIT_CPU forces a variant (as the `variant` argument does), DIFFIT_NUM_THREADS the number of threads,
 * DIFFIT_CPU_BF16 how bf16 is multiplied.
 */
#include "../abi/statistics.h"
#include "widen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <initializer_list>
#include <new>
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern "C" {
typedef int64_t diffit_cpu_peak_loop(diffit_context *, int64_t tasks, bool dot, bool alone);
#if defined(__x86_64__)
extern const diffit_ops diffit_cpu_ops_avx512, diffit_cpu_ops_avx2, diffit_cpu_ops_baseline;
extern diffit_cpu_peak_loop diffit_cpu_peak_avx512, diffit_cpu_peak_avx2, diffit_cpu_peak_baseline;
extern const diffit_statistics diffit_cpu_statistics_avx512, diffit_cpu_statistics_avx2, diffit_cpu_statistics_baseline;
#elif defined(__aarch64__)
extern const diffit_ops diffit_cpu_ops_neon;
extern diffit_cpu_peak_loop diffit_cpu_peak_neon;
extern const diffit_statistics diffit_cpu_statistics_neon;
#else
extern const diffit_ops diffit_cpu_ops_baseline;
extern diffit_cpu_peak_loop diffit_cpu_peak_baseline;
extern const diffit_statistics diffit_cpu_statistics_baseline;
#endif
}

namespace diffit {
namespace {

struct Variant {
  const char *name;
  const diffit_ops *ops;
  diffit_cpu_peak_loop *peak;
  const diffit_statistics *statistics;
  bool (*runs)(); /* on this processor and operating system */
  bool (*hasDots)(); /* whether it could use the processor's dot product of bf16 pairs */
};

#if defined(__x86_64__)
bool hasAvx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}
bool hasAvx512() {
  return hasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool hasAvx512Bf16() { return hasAvx512() && __builtin_cpu_supports("avx512bf16"); }
/* Whether the dot product runs as often as a multiply-add: AMD's do, Intel's without AMX run half as often. */
bool dotsAreFast() { return __builtin_cpu_is("amd"); }
#else
bool dotsAreFast() { return false; }
#endif
bool always() { return true; }
bool never() { return false; }

/* Best first. */
const Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512", &diffit_cpu_ops_avx512, diffit_cpu_peak_avx512, &diffit_cpu_statistics_avx512, hasAvx512, hasAvx512Bf16},
    {"avx2", &diffit_cpu_ops_avx2, diffit_cpu_peak_avx2, &diffit_cpu_statistics_avx2, hasAvx2, never},
    {"baseline", &diffit_cpu_ops_baseline, diffit_cpu_peak_baseline, &diffit_cpu_statistics_baseline, always, never},
#elif defined(__aarch64__)
    {"neon", &diffit_cpu_ops_neon, diffit_cpu_peak_neon, &diffit_cpu_statistics_neon, always, never},
#else
    {"baseline", &diffit_cpu_ops_baseline, diffit_cpu_peak_baseline, &diffit_cpu_statistics_baseline, always, never},
#endif
};

const Variant *findVariant(const char *wanted) {
  for (const Variant &v : kVariants)
    if (v.runs() && (!wanted || strcmp(v.name, wanted) == 0)) return &v;
  return nullptr;
}

/* "avx512, avx2, baseline": what this machine can run. */
void listVariants(char *text, size_t size) {
  size_t used = 0;
  text[0] = '\0';
  for (const Variant &v : kVariants)
    if (v.runs() && used < size) used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", v.name);
}

int readNumber(const char *path, int otherwise) {
  FILE *file = fopen(path, "r");
  int value;
  if (!file) return otherwise;
  if (fscanf(file, "%d", &value) != 1) value = otherwise;
  fclose(file);
  return value;
}

/* Processors that the container's quota (cgroup v2) pays for; a large number without one. */
int quotaOfProcessors() {
  long quota, period;
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
  if (!file) return kMaxThreads;
  const bool limited = fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0;
  fclose(file);
  return limited ? (int)((quota + period - 1) / period) : kMaxThreads;
}

/* Physical cores this process may run on: hardware threads of one core count once. */
int countCores() {
  int cores = 0;
#if defined(__linux__)
  static constexpr int kMaxCpus = CPU_SETSIZE;
  cpu_set_t allowed;
  int seen[kMaxCpus];
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      char path[96];
      snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
      const int package = readNumber(path, 0);
      snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
      const int core = readNumber(path, cpu);
      const int id = (package << 20) ^ core;
      bool known = false;
      for (int i = 0; i < cores && !known; i++) known = seen[i] == id;
      if (!known) seen[cores++] = id;
    }
  }
#endif
  if (cores == 0) cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
  const int quota = quotaOfProcessors();
  cores = cores < quota ? cores : quota;
  return cores < 1 ? 1 : cores > kMaxThreads ? kMaxThreads : cores;
}

/* The number of threads: the argument, else DIFFIT_NUM_THREADS, else the cores. 0 and a sentence where it is no number. */
int chooseThreads(int32_t wanted, char *why, size_t whySize) {
  if (wanted < 0 || wanted > kMaxThreads) {
    snprintf(why, whySize, "%d threads were asked for; expected 1 to %d, or 0 to choose.", (int)wanted, kMaxThreads);
    return 0;
  }
  if (wanted > 0) return wanted;
  const char *text = getenv("DIFFIT_NUM_THREADS");
  if (!text || !*text) return countCores();
  char *end;
  const long value = strtol(text, &end, 10);
  if (*end == '\0' && value >= 1 && value <= kMaxThreads) return (int)value;
  snprintf(why, whySize, "DIFFIT_NUM_THREADS is \"%s\"; expected a whole number from 1 to %d.", text, kMaxThreads);
  return 0;
}

/* How products of bf16 are computed: DIFFIT_CPU_BF16, else what is faster. Not DIFFIT_OK, and a sentence, where it cannot be. */
diffit_status chooseDots(const Variant &variant, bool *dots, char *why, size_t whySize) {
  const char *text = getenv("DIFFIT_CPU_BF16");
  *dots = variant.hasDots() && dotsAreFast();
  if (!text || !*text) return DIFFIT_OK;
  *dots = strcmp(text, "dot") == 0;
  if (!*dots && strcmp(text, "widen") != 0) {
    snprintf(why, whySize, "DIFFIT_CPU_BF16 is \"%s\"; expected dot or widen.", text);
    return DIFFIT_INVALID;
  }
  if (!*dots || variant.hasDots()) return DIFFIT_OK;
  snprintf(why, whySize, "DIFFIT_CPU_BF16 is \"dot\"; the %s kernels on this processor have no bf16 dot product.",
           variant.name);
  return DIFFIT_UNSUPPORTED;
}

void destroy(diffit_context *ctx) {
  if (!ctx) return;
  stopThreads(ctx);
  freeScratch(ctx);
  delete ctx;
}

diffit_status create(int32_t index, const char *variant, int32_t threads, diffit_context **context, char *why,
                     size_t whySize) {
  *context = nullptr;
  if (index != 0) {
    snprintf(why, whySize, "There is no device cpu:%d; the processor is one device, cpu:0.", (int)index);
    return DIFFIT_INVALID;
  }
  const char *wanted = variant && *variant ? variant : getenv("DIFFIT_CPU");
  if (wanted && !*wanted) wanted = nullptr;
  const Variant *chosen = findVariant(wanted);
  if (!chosen) {
    char offered[64];
    listVariants(offered, sizeof offered);
    snprintf(why, whySize, "This processor has no CPU variant \"%s\"; it offers %s.", wanted, offered);
    return DIFFIT_UNSUPPORTED;
  }
  const int count = chooseThreads(threads, why, whySize);
  if (count == 0) return DIFFIT_INVALID;
  bool dots;
  const diffit_status status = chooseDots(*chosen, &dots, why, whySize);
  if (status != DIFFIT_OK) return status;
  diffit_context *ctx = new (std::nothrow) diffit_context;
  if (!ctx || !startThreads(ctx, count)) {
    destroy(ctx);
    snprintf(why, whySize, "There is no memory for the state of %d threads.", count);
    return DIFFIT_OUT_OF_MEMORY;
  }
  ctx->ops = chosen->ops;
  ctx->variant = chosen->name;
  ctx->dots = dots;
  *context = ctx;
  return DIFFIT_OK;
}

/* The processor's name as Linux gives it, else its architecture. */
void processorName(char *name, size_t size) {
#if defined(__aarch64__)
  snprintf(name, size, "arm64 processor");
#elif defined(__x86_64__)
  snprintf(name, size, "x86-64 processor");
#else
  snprintf(name, size, "processor");
#endif
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (!file) return;
  char line[512];
  while (fgets(line, sizeof line, file)) {
    const char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : nullptr;
    if (!value) continue;
    value += 1 + strspn(value + 1, " \t");
    snprintf(name, size, "%.*s", (int)strcspn(value, "\n"), value);
    break;
  }
  fclose(file);
}

void info(diffit_context *ctx, diffit_device_info *out) {
  processorName(out->name, sizeof out->name);
  snprintf(out->variant, sizeof out->variant, "%s", ctx->variant);
  out->threads = ctx->threads;
  const long pages = sysconf(_SC_PHYS_PAGES), pageSize = sysconf(_SC_PAGESIZE);
  out->memory = pages > 0 && pageSize > 0 ? (int64_t)pages * pageSize : 0;
}

void *allocate(diffit_context *, size_t bytes) {
  static constexpr size_t kHuge = (size_t)2 << 20; /* fewer page faults and TLB misses for large tensors */
  const size_t alignment = bytes >= kHuge ? kHuge : DIFFIT_ALIGNMENT;
  void *memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes ? bytes : 1) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHuge) madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);
#endif
  return memory;
}

void release(diffit_context *, void *memory) { free(memory); }

diffit_status copy(diffit_context *, void *to, const void *from, size_t bytes) {
  if (bytes) memcpy(to, from, bytes);
  return DIFFIT_OK;
}

const char *error(diffit_context *ctx) { return ctx->error; }

int32_t count() { return 1; }

/* Operations are done when they return, so a mark is the time of the clock. */
diffit_status mark(diffit_context *ctx, int32_t slot) {
  if (slot < 0 || slot >= DIFFIT_MARKS) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "There is no mark %d.", (int)slot);
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  ctx->marks[slot] = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
  return DIFFIT_OK;
}
diffit_status elapsed(diffit_context *ctx, int32_t from, int32_t to, double *milliseconds) {
  for (int32_t slot : {from, to})
    if (slot < 0 || slot >= DIFFIT_MARKS || ctx->marks[slot] == 0)
      return diffit_cpu_fail(ctx, DIFFIT_INVALID, "There is no mark %d.", (int)slot);
  *milliseconds = ctx->marks[to] - ctx->marks[from];
  return DIFFIT_OK;
}

const diffit_backend kBackend = {DIFFIT_ABI_VERSION,
                                 "cpu",
                                 create,
                                 destroy,
                                 info,
                                 allocate,
                                 release,
                                 copy,
                                 copy,
                                 error,
                                 count,
                                 nullptr, /* memory: shared with the rest of the machine */
                                 mark,
                                 elapsed,
                                 nullptr, /* capture_begin */
                                 nullptr, /* capture_end */
                                 nullptr, /* replay */
                                 nullptr, /* free_graph */
                                 {
#define DIFFIT_OP(name, ...) Through<Op_##name>::call,
#include "../abi/ops.def"
#undef DIFFIT_OP
                                 }};

}  // namespace
}  // namespace diffit

extern "C" {

/* The backend "cpu"; always there. */
const diffit_backend *diffit_cpu_backend(void) { return &diffit::kBackend; }

/* Names of the variants this machine can run, best first: writes up to `max` of them, returns how many there are. */
int diffit_cpu_variants(const char **names, int max) {
  int count = 0;
  for (const diffit::Variant &v : diffit::kVariants) {
    if (!v.runs()) continue;
    if (count < max) names[count] = v.name;
    count++;
  }
  return count;
}

/* Operations per second of a loop of multiply-adds in registers (of the bf16 dot product with `dot`) on all threads of the context,
   or on one: the best of many short stretches. 0 where the variant or the processor has no such instruction. */
double diffit_cpu_peak(diffit_context *ctx, int dot, int alone) {
  const diffit::Variant *variant = diffit::findVariant(ctx->variant);
  const int64_t tasks = 32 * (alone ? 1 : ctx->threads);
  double best = 0;
  for (int stretch = 0; stretch < 20; stretch++) {
    timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    const int64_t done = variant->peak(ctx, tasks, dot, alone);
    clock_gettime(CLOCK_MONOTONIC, &to);
    const double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9;
    const double rate = (double)done / seconds;
    best = rate > best ? rate : best;
  }
  return best;
}

const diffit_statistics *diffit_cpu_statistics(const diffit_context *ctx) {
  return diffit::findVariant(ctx->variant)->statistics;
}
}
