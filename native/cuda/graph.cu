/*
 * Graphs: operations captured once and launched together. They are captured on a stream of their own, so that memory
 * is taken and given back on the home stream meanwhile. A graph holds addresses and scalars by value; it is replayed only with the same
 * (native/binding/replay.h), and goes stale when scratch memory has moved.
 */
#include <new>

#include "context.cuh"

namespace diffit {
namespace {

struct Graph {
  cudaGraphExec_t executable;
  uint64_t scratchMoves;
};

}  // namespace

diffit_status captureBegin(diffit_context *ctx) {
  TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
  TRY(check(ctx, cudaStreamBeginCapture(ctx->recorder, cudaStreamCaptureModeRelaxed), "A capture"));
  ctx->stream = ctx->recorder;
  return DIFFIT_OK;
}

diffit_status captureEnd(diffit_context *ctx, void **graph) {
  *graph = nullptr;
  ctx->stream = ctx->home;
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaError_t error = cudaStreamEndCapture(ctx->recorder, &captured);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&executable, captured, 0);
  if (captured) cudaGraphDestroy(captured);
  TRY(check(ctx, error, "A capture"));
  Graph *made = new (std::nothrow) Graph{executable, ctx->scratchMoves};
  if (!made) {
    cudaGraphExecDestroy(executable);
    return fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for a graph.");
  }
  *graph = made;
  return DIFFIT_OK;
}

diffit_status replay(diffit_context *ctx, void *graph) {
  const Graph &g = *(Graph *)graph;
  if (g.scratchMoves != ctx->scratchMoves)
    return fail(ctx, DIFFIT_UNSUPPORTED, "The graph is stale: scratch memory has moved.");
  TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
  const diffit_status status = check(ctx, cudaGraphLaunch(g.executable, ctx->home), "A graph");
  /* Without memory for it nothing was launched, and its operations may do with less. */
  return status == DIFFIT_OUT_OF_MEMORY ? DIFFIT_UNSUPPORTED : status;
}

void freeGraph(diffit_context *ctx, void *graph) {
  cudaSetDevice(ctx->index);
  cudaStreamSynchronize(ctx->home); /* it may be running */
  cudaGraphExecDestroy(((Graph *)graph)->executable);
  delete (Graph *)graph;
}

}  // namespace diffit
