// Switching stacks: a dozen instructions on x86-64 and AArch64. `tlr_switch(&from, to)` saves the registers that calls
// preserve on the old stack; `fresh_stack` makes one that starts in a function.
#pragma once
#include <cstdint>
#include <cstring>

extern "C" void tlr_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl tlr_switch
.hidden tlr_switch
.type tlr_switch, @function
tlr_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
static inline void* fresh_stack(char* top, void (*start)()) {
  uint64_t* sp = (uint64_t*)((uintptr_t)top & ~(uintptr_t)63);
  *--sp = 0;  // where a caller's address would be: the start function sees the alignment that a call gives
  *--sp = (uint64_t)start;
  for (int i = 0; i < 6; i++) *--sp = 0;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl tlr_switch
.hidden tlr_switch
.type tlr_switch, %function
tlr_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
static inline void* fresh_stack(char* top, void (*start)()) {
  uint64_t* sp = (uint64_t*)((uintptr_t)top & ~(uintptr_t)63) - 20;
  memset(sp, 0, 160);
  sp[11] = (uint64_t)start;  // x30
  return sp;
}
#else  // any other processor: the C library's contexts, slower because each switch saves the signal mask
#include <ucontext.h>
#include <new>
extern "C" void tlr_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, (ucontext_t*)to);
}
static inline void* fresh_stack(char* top, void (*start)()) {
  uintptr_t place = ((uintptr_t)top - sizeof(ucontext_t)) & ~(uintptr_t)63;
  ucontext_t* context = new ((void*)place) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = (char*)place - (96 << 10);
  context->uc_stack.ss_size = 96 << 10;
  context->uc_link = nullptr;
  makecontext(context, start, 0);
  return context;
}
#endif
