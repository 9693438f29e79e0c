/*
 * Fibres: the threads of a CUDA block, run on one host thread by switching stacks. x86-64 (System V) only: the emulator
 * is a test tool, and tests run there.
 */
#ifndef DIFFIT_EMULATOR_FIBRE_H
#define DIFFIT_EMULATOR_FIBRE_H

#include <stddef.h>

namespace diffit {
namespace emulator {

/* Stack of one emulated thread; kernels keep fragments of a few KiB there. */
constexpr size_t kStackBytes = 128 << 10;

/* A suspended stack: where it continues when it is switched to. */
using StackPointer = void *;

/* Saves the running stack in *from and continues `to`. */
void switchStack(StackPointer *from, StackPointer to);

/* A stack that calls entry() when it is first switched to; entry must not return. */
StackPointer prepareStack(char *memory, size_t bytes, void (*entry)());

}  // namespace emulator
}  // namespace diffit

#endif
