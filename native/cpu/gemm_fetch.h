/*
 * What a product will touch next, brought to L2 while it computes. The kernels ask for one cache line of a list every few steps
 * of k (gemm_kernel.h): as many requests in a burst would fill the buffers that the kernel's own loads need.
 *
 * A list has room for the lines of one call of a kernel: the place the sums go to and what their epilogue reads, then a share
 * of the next rows of A and of the next block of B. Entries that are left over from an earlier call are asked for once more,
 * which costs next to nothing.
 */
#ifndef DIFFIT_CPU_GEMM_FETCH_H
#define DIFFIT_CPU_GEMM_FETCH_H

static constexpr int64_t kCacheLine = 64;
static constexpr int64_t kMostFetches = kBlockDepth / kFetchSteps;

/* Rows of memory, `stride` bytes apart. */
struct Region {
  const char *data;
  int64_t rows, bytes, stride;
  int64_t cacheLines() const { return rows * ceilDiv(bytes, kCacheLine); }
};

struct FetchList {
  const char *at[kMostFetches];
  int64_t used;

  void clear() {
    used = 0;
    for (int64_t i = 0; i < kMostFetches; i++) at[i] = (const char *)this;
  }
  /* `count` cache lines from p on, as far as there is room. */
  void add(const char *p, int64_t count) {
    const int64_t n = imin(count, kMostFetches - used);
    for (int64_t i = 0; i < n; i++) at[used + i] = p + i * kCacheLine;
    used += n;
  }
  /* All that `bytes` from p on touch. */
  void span(const char *p, int64_t bytes) {
    const int64_t before = (int64_t)((uintptr_t)p % kCacheLine);
    add(p - before, ceilDiv(before + bytes, kCacheLine));
  }
  void spans(const Region &region) {
    for (int64_t i = 0; i < region.rows; i++) span(region.data + i * region.stride, region.bytes);
  }
};

/* A region that is fetched in `share` cache lines at a time. */
struct Walk {
  Region region = {};
  int64_t share = 0, done = 0; /* done: bytes of the first row that is left */

  Walk() {}
  Walk(const Region &r, int64_t calls) : region(r), share(ceilDiv(r.cacheLines(), imax(1, calls))) {}
  void take(FetchList *list) {
    for (int64_t left = share; left > 0 && region.rows > 0;) {
      const int64_t n = imin(left, ceilDiv(region.bytes - done, kCacheLine));
      list->add(region.data + done, n);
      left -= n;
      done += n * kCacheLine;
      if (done < region.bytes) continue;
      done = 0;
      region.rows--;
      region.data += region.stride;
    }
  }
};

#endif
