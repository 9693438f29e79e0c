/*
 * Copies between host and device, through pinned memory that the driver reads and writes directly.
 *
 * Up: the bytes go into a ring of kUp pieces of kPiece bytes and from there to the device; the call returns without
 * waiting for the device. Small copies share a piece. An event behind a piece's last copy says when it may be filled again.
 * Down: two pieces take turns, one being filled while the other is copied out; the last one is waited for, so everything
 * enqueued before has been done. What kernels reported meanwhile is found then. Memory traffic: the bytes once more on the host.
 */
#include <string.h>

#include <new>

#include "context.cuh"

namespace {

constexpr size_t kPiece = (size_t)4 << 20, kAlignment = 256;
constexpr int kUp = 4, kDown = 2;

struct Piece {
  char *memory = nullptr;
  cudaEvent_t copied = nullptr; /* behind its last copy */
};

}  // namespace

struct diffit_staging {
  Piece up[kUp], down[kDown];
  int piece = 0; /* of `up`, being filled */
  size_t filled = 0;
};

namespace diffit {
namespace {

diffit_status preparePieces(diffit_context *ctx, Piece *pieces, int count) {
  for (int i = 0; i < count; i++) {
    Piece &piece = pieces[i];
    if (!piece.memory) TRY(check(ctx, cudaMallocHost((void **)&piece.memory, kPiece), "Pinned memory for copies"));
    if (!piece.copied)
      TRY(check(ctx, cudaEventCreateWithFlags(&piece.copied, cudaEventDisableTiming), "An event for copies"));
  }
  return DIFFIT_OK;
}

/* The copy's state and its device, made at the first copy. */
diffit_status prepare(diffit_context *ctx) {
  TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
  if (!ctx->staging) ctx->staging = new (std::nothrow) diffit_staging;
  return ctx->staging ? DIFFIT_OK : fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for the state of copies.");
}

}  // namespace

diffit_status reportBadIndex(diffit_context *ctx) {
  if (!__atomic_load_n(&ctx->badIndex->complete, __ATOMIC_ACQUIRE)) return DIFFIT_OK;
  const diffit_bad_index bad = *ctx->badIndex;
  ctx->badIndex->complete = 0;
  __atomic_store_n(&ctx->badIndex->taken, 0, __ATOMIC_RELEASE);
  return fail(ctx, DIFFIT_INVALID, "%s: index %lld at position %lld; expected 0 to %lld", bad.op, (long long)bad.value,
              (long long)bad.position, (long long)bad.limit - 1);
}

diffit_status upload(diffit_context *ctx, void *device, const void *host, size_t bytes) {
  if (bytes == 0) return DIFFIT_OK;
  TRY(prepare(ctx));
  diffit_staging &s = *ctx->staging;
  TRY(preparePieces(ctx, s.up, kUp));
  while (bytes > 0) {
    if (s.filled == kPiece) {
      TRY(check(ctx, cudaEventRecord(s.up[s.piece].copied, ctx->home), "An upload"));
      s.piece = (s.piece + 1) % kUp;
      TRY(check(ctx, cudaEventSynchronize(s.up[s.piece].copied), "A kernel or a copy"));
      s.filled = 0;
    }
    const size_t part = bytes < kPiece - s.filled ? bytes : kPiece - s.filled;
    char *staged = s.up[s.piece].memory + s.filled;
    memcpy(staged, host, part);
    TRY(check(ctx, cudaMemcpyAsync(device, staged, part, cudaMemcpyHostToDevice, ctx->home), "An upload"));
    s.filled += (part + kAlignment - 1) / kAlignment * kAlignment;
    host = (const char *)host + part;
    device = (char *)device + part;
    bytes -= part;
  }
  return DIFFIT_OK;
}

diffit_status download(diffit_context *ctx, void *host, const void *device, size_t bytes) {
  if (bytes == 0) return DIFFIT_OK;
  TRY(prepare(ctx));
  diffit_staging &s = *ctx->staging;
  TRY(preparePieces(ctx, s.down, kDown));
  const size_t parts = (bytes + kPiece - 1) / kPiece;
  const auto size = [=](size_t part) { return part + 1 < parts ? kPiece : bytes - part * kPiece; };
  for (size_t part = 0; part <= parts; part++) {
    if (part < parts) {
      const Piece &piece = s.down[part % kDown];
      const char *from = (const char *)device + part * kPiece;
      TRY(check(ctx, cudaMemcpyAsync(piece.memory, from, size(part), cudaMemcpyDeviceToHost, ctx->home), "A copy"));
      TRY(check(ctx, cudaEventRecord(piece.copied, ctx->home), "A copy"));
    }
    if (part == 0) continue;
    const Piece &before = s.down[(part - 1) % kDown];
    TRY(check(ctx, cudaEventSynchronize(before.copied), "A kernel or a copy"));
    memcpy((char *)host + (part - 1) * kPiece, before.memory, size(part - 1));
  }
  return reportBadIndex(ctx);
}

void freeStaging(diffit_context *ctx) {
  diffit_staging *s = ctx->staging;
  if (!s) return;
  const auto free = [](Piece &piece) {
    if (piece.memory) cudaFreeHost(piece.memory);
    if (piece.copied) cudaEventDestroy(piece.copied);
  };
  for (Piece &piece : s->up) free(piece);
  for (Piece &piece : s->down) free(piece);
  delete s;
}

}  // namespace diffit
