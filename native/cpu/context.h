/*
 * What the CPU kernels see of the backend's state: worker threads, scratch memory, the last error.
 *
 * Plain C functions, compiled once for the baseline processor (context.cc). Kernel files are compiled once per
 * instruction set inside a namespace of their own and must call nothing inline that another variant also calls:
 * the linker would keep one copy, perhaps the AVX-512 one.
 */
#ifndef DIFFIT_CPU_CONTEXT_H
#define DIFFIT_CPU_CONTEXT_H

#include "../abi/diffit.h"

extern "C" {

/* Runs task(argument, i, thread) for i in [0, tasks), on all threads, and returns when all are done. Tasks are
   handed out dynamically, so what a task writes must not depend on which thread runs it or in which order. */
void diffit_cpu_run(diffit_context *, int64_t tasks, void (*task)(void *argument, int64_t index, int thread),
                    void *argument);

int diffit_cpu_threads(const diffit_context *);

/* Whether products of bf16 use the processor's dot product; else they are widened to f32. */
int diffit_cpu_dots(const diffit_context *);

/* Scratch memory, 64-byte aligned, valid until the operation returns. Slot 0..3 of each thread, and `shared` slots
   0..3 for the whole operation (call from outside tasks). Returns NULL when memory is out. Grows, never shrinks. */
void *diffit_cpu_scratch(diffit_context *, int thread, int slot, size_t bytes);
void *diffit_cpu_shared(diffit_context *, int slot, size_t bytes);

/* Stores a printf-style sentence for diffit_backend.error and returns `status`. */
diffit_status diffit_cpu_fail(diffit_context *, diffit_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
}

#endif
