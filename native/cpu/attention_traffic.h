/*
 * What moves between memory and the second-level cache while small windows are computed: rows of the work after this one are
 * fetched, finished rows of a gradient are written.
 *
 * A head's rows are short pieces far apart, which the hardware cannot guess and which begin and end within cache lines. So
 * rows are fetched for several heads at once, long enough for the hardware to help, and written for as many heads as fill
 * whole lines, past the caches if the tensor is larger than those: then no line is read before it is written. Both go
 * a few lines at a time between the products, as the processor remembers few of them at once.
 */
#ifndef DIFFIT_CPU_ATTENTION_TRAFFIC_H
#define DIFFIT_CPU_ATTENTION_TRAFFIC_H

static constexpr int64_t kLine = 64; /* bytes */
static constexpr int64_t kStreamBytes = 8 << 20; /* from here on a tensor is written past the caches */

/* Fetches the rows of a window's tokens, of several tensors one after the other. */
struct RowFetch {
  static constexpr int kMost = 4;
  struct Source {
    const char *first; /* of the window's first token, on a line's start */
    int64_t stride, bytes; /* from token to token; whole lines of a row */
  } sources[kMost];
  const int64_t *offsets = nullptr;
  int64_t tokens = 0, token = 0, at = 0; /* at: bytes of a row that are done */
  int count = 0, source = 0;

  template <class T>
  void add(const T *from, int64_t stride, int64_t elements) {
    const uintptr_t begin = (uintptr_t)from / kLine * kLine, end = (uintptr_t)(from + elements);
    sources[count++] = {(const char *)begin, stride * (int64_t)sizeof(T), roundUp((int64_t)(end - begin), kLine)};
  }
  /* Returns how many lines there are. */
  int64_t start(const int64_t *of, int64_t n) {
    offsets = of;
    tokens = n;
    int64_t lines = 0;
    for (int i = 0; i < count; i++) lines += sources[i].bytes / kLine * n;
    return lines;
  }
  inline __attribute__((always_inline)) void step(int64_t lines) {
    for (int64_t left = lines * kLine; left > 0 && source < count;) {
      const Source &from = sources[source];
      const char *row = from.first + offsets[token] * from.stride + at;
      const int64_t bytes = imin(left, from.bytes - at);
      for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(row + i, 0, 2);
      left -= bytes;
      at += bytes;
      if (at < from.bytes) return;
      at = 0;
      if (++token < tokens) continue;
      token = 0;
      source++;
    }
  }
};

/* One line of f32 or bf16 from f32, past the caches. */
DIFFIT_INLINE void streamLine(float *to, const float *from) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)load(from));
#elif defined(__AVX2__)
  for (int i = 0; i < 16; i += kLanes) _mm256_stream_ps(to + i, (__m256)load(from + i));
#elif defined(__x86_64__)
  for (int i = 0; i < 16; i += kLanes) _mm_stream_ps(to + i, (__m128)load(from + i));
#else
  for (int i = 0; i < 16; i += kLanes) store(to + i, load(from + i));
#endif
}
DIFFIT_INLINE void streamLine(Bf16 *to, const float *from) {
#if defined(__AVX512F__)
  for (int i = 0; i < 32; i += kLanes) _mm256_stream_si256((__m256i *)(to + i), (__m256i)narrowVector(load(from + i)));
#elif defined(__AVX2__)
  for (int i = 0; i < 32; i += kLanes) _mm_stream_si128((__m128i *)(to + i), (__m128i)narrowVector(load(from + i)));
#else
  for (int i = 0; i < 32; i += kLanes) store(to + i, load(from + i));
#endif
}
/* Other threads may read what streamLine() wrote only after this. */
DIFFIT_INLINE void endStream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

/* Writes rows [tokens, 3, width] of f32 to a window's tokens in a tensor [..., 3, channels] of f32 or bf16. */
struct RowWrite {
  const float *from = nullptr;
  void *to = nullptr;
  const int64_t *offsets = nullptr;
  int64_t channels = 0, width = 0, tokens = 0, token = 0, part = 0, column = 0, perLine = 1;
  bool stream = false;

  /* Returns how many lines there are. */
  template <class T>
  int64_t start(const float *source, T *target, const int64_t *of, int64_t n, int64_t toChannels, int64_t elements,
                bool pastCaches) {
    from = source;
    to = target;
    offsets = of;
    channels = toChannels;
    width = elements;
    tokens = n;
    token = part = column = 0;
    perLine = kLine / (int64_t)sizeof(T);
    stream = pastCaches && (uintptr_t)target % kLine == 0 && width % perLine == 0 && channels % perLine == 0;
    return 3 * n * ceilDiv(width, perLine);
  }
  template <class T>
  void stepOf(int64_t lines) {
    constexpr int64_t kElements = kLine / (int64_t)sizeof(T);
    for (int64_t left = lines * kElements; left > 0 && token < tokens;) {
      const float *source = from + (token * 3 + part) * width;
      T *target = (T *)to + (offsets[token] * 3 + part) * channels;
      const int64_t end = imin(width, column + left);
      if (stream)
        for (int64_t c = column; c < end; c += kElements) streamLine(target + c, source + c);
      else
        for (int64_t c = column; c < end; c += kLanes) storeColumns(target, c, width, loadColumns(source, c, width));
      left -= end - column;
      column = end;
      if (end < width) return;
      column = 0;
      if (++part < 3) continue;
      part = 0;
      token++;
    }
  }
  void step(int64_t lines) { perLine == kLine / (int64_t)sizeof(float) ? stepOf<float>(lines) : stepOf<Bf16>(lines); }
  void finish() { step(3 * tokens * width); }
};

/* Both, a few lines at a time. */
struct RowTraffic {
  RowFetch fetch;
  RowWrite write;
  int64_t fetched = 0, written = 0; /* lines a step */
  __attribute__((noinline)) void step() {
    fetch.step(fetched);
    write.step(written);
  }
};

#endif
