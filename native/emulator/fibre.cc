#include "fibre.h"

#include <stdint.h>

#if !defined(__x86_64__)
#error "The CUDA emulator runs on x86-64."
#endif

/* rdi: where to save the stack pointer, rsi: the one to take. The callee-saved registers lie on the stacks themselves. */
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".type diffit_emulator_switch, @function\n"
    "diffit_emulator_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size diffit_emulator_switch, .-diffit_emulator_switch\n");

extern "C" void diffit_emulator_switch(void **from, void *to) __attribute__((visibility("hidden")));

namespace diffit {
namespace emulator {

void switchStack(StackPointer *from, StackPointer to) { diffit_emulator_switch(from, to); }

StackPointer prepareStack(char *memory, size_t bytes, void (*entry)()) {
  uintptr_t top = (uintptr_t)(memory + bytes) & ~(uintptr_t)15;
  void **sp = (void **)top;
  *--sp = nullptr; /* a function starts with the stack 8 bytes off 16, as after a call */
  *--sp = (void *)entry;
  for (int i = 0; i < 6; i++) *--sp = nullptr; /* rbp rbx r12 r13 r14 r15 */
  return sp;
}

}  // namespace emulator
}  // namespace diffit
