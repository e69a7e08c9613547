// Fibres: stacks and the switch between them. A kernel under the model switches tens
// of times per warp instruction, so the switch saves what the calling convention asks
// for and nothing else; ucontext, the portable way, makes a system call each time.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace bitnas::cuda::model {

// Memory with a page at either end that cannot be touched.
class GuardedPages {
 public:
  explicit GuardedPages(size_t bytes = 0) : bytes_((bytes + page() - 1) / page() * page()) {
    if (bytes_ == 0) return;
    void* mapped = mmap(nullptr, bytes_ + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped != MAP_FAILED) first_ = static_cast<uint8_t*>(mapped) + page();
    if (first_ == nullptr || mprotect(first_, bytes_, PROT_READ | PROT_WRITE) != 0) {
      std::perror("CUDA model: mmap");
      std::abort();
    }
  }
  GuardedPages(GuardedPages&& other) noexcept
      : first_(std::exchange(other.first_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  GuardedPages& operator=(GuardedPages&& other) noexcept {
    std::swap(first_, other.first_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~GuardedPages() {
    if (first_ != nullptr) munmap(first_ - page(), bytes_ + 2 * page());
  }

  uint8_t* end() const { return first_ + bytes_; }
  size_t size() const { return bytes_; }
  bool guards(const void* address) const {
    const auto* at = static_cast<const uint8_t*>(address);
    return first_ != nullptr && ((at >= first_ - page() && at < first_) || (at >= end() && at < end() + page()));
  }

 private:
  static size_t page() {
    static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
  }

  uint8_t* first_ = nullptr;
  size_t bytes_;
};

#ifdef __x86_64__

#if defined(__has_attribute) && __has_attribute(noipa)
#define BITNAS_OPAQUE __attribute__((naked, noinline, noipa))  // or callers learn which registers it leaves alone
#else
#define BITNAS_OPAQUE __attribute__((naked, noinline))
#endif
BITNAS_OPAQUE inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#undef BITNAS_OPAQUE

class Context {
 public:
  // The first switch to it calls `entry`, which must not return, on the stack that ends at `top`.
  void start(uint8_t* top, size_t /*bytes*/, void (*entry)()) {
    auto** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;  // the return address of `entry`: where a backtrace ends
    *--slot = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
    stack_pointer_ = slot;
  }
  void switch_to(Context& next) { switch_stack(&stack_pointer_, next.stack_pointer_); }

 private:
  void* stack_pointer_ = nullptr;
};

#else

class Context {
 public:
  void start(uint8_t* top, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = top - bytes;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& next) { swapcontext(&context_, &next.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace bitnas::cuda::model
