// SPDX-License-Identifier: Apache-2.0
#include "tests/ops/cuda_access_check.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>

#include "base/strings.h"

// Static variables of the program: what __shared__ becomes.
extern "C" char __data_start[], _end[];

namespace nibble::cuda {
namespace {

using Kind = AccessCheck::Kind;
constexpr size_t kMostFaults = 4;
constexpr size_t kPageBytes = 1024;
constexpr uint16_t kSeveral = 0x8000;  // threads of one warp; its number below
constexpr uint16_t kAnyone = 0xFFFF;   // threads of several warps

// Read by every allocation and every access.
bool launched = false, watching = false;

// --- Live allocations of operator new and aligned_alloc
// -------------------------------------------------------------

template <typename T>
struct Malloced {
  using value_type = T;
  Malloced() = default;
  template <typename U>
  explicit Malloced(const Malloced<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(std::malloc(n * sizeof(T))); }
  void deallocate(T* p, size_t) { std::free(p); }
  bool operator==(const Malloced&) const { return true; }
};
using Ranges = std::map<uintptr_t, uintptr_t, std::less<>,
                        Malloced<std::pair<const uintptr_t, uintptr_t>>>;  // begin to end
struct Allocations {
  std::mutex mutex;
  Ranges live;
};
Allocations& Live() {
  alignas(Allocations) static unsigned char memory[sizeof(Allocations)];
  static auto* const allocations = new (memory) Allocations();  // never destroyed
  return *allocations;
}

// --- Who touched a byte last
// ----------------------------------------------------------------------

struct Mark {
  uint32_t block = 0;  // counted over all launches
  uint32_t barrier = 0, warp_barrier = 0;
  uint16_t thread = 0;
  bool atomic = false;
};
struct Cell {
  Mark write, read;
  uint32_t shared_by_blocks = 0;  // launch in which several blocks read it
};
struct Page {
  Cell cells[kPageBytes];
};

struct State {
  uint32_t launch = 0, first_block = 1, block = 0, barrier = 0;
  uint32_t warp_barriers[32] = {};
  unsigned thread = 0;
  uintptr_t stack = 0, stack_end = 0;
  uintptr_t shared = 0, shared_end = 0;
  uintptr_t known = 0, known_end = 0;  // the allocation met last
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  uintptr_t last_page = 0;
  Page* last = nullptr;
  std::string faults;
  size_t fault_count = 0;
};
State& Now() {
  static State& state = *new State();
  return state;
}

Cell& CellOf(State& s, uintptr_t at) {
  const uintptr_t number = at / kPageBytes;
  if (s.last == nullptr || s.last_page != number) {
    std::unique_ptr<Page>& page = s.pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    s.last = page.get();
    s.last_page = number;
  }
  return s.last->cells[at % kPageBytes];
}

std::string ThreadName(uint16_t thread) {
  if (thread == kAnyone) return "several warps";
  if ((thread & kSeveral) != 0) return "warp " + std::to_string(thread & ~kSeveral);
  return "thread " + std::to_string(thread);
}

void Fault(State& s, uintptr_t at, size_t bytes, Kind kind, const std::string& what) {
  if (++s.fault_count > kMostFaults) return;
  static constexpr const char* kVerbs[] = {"reads", "writes", "reads", "writes", "updates"};
  s.faults +=
      StrFormat("thread %u of block %u %s %zu bytes at %p: %s\n", s.thread, s.block - s.first_block,
                kVerbs[static_cast<int>(kind)], bytes, reinterpret_cast<void*>(at), what.c_str());
}

// Whether nothing orders this thread after the one that left the mark.
bool Races(const State& s, const Mark& mark, bool shared) {
  if (mark.block < s.first_block) return false;
  if (mark.block != s.block) return !shared;
  if (mark.thread == s.thread || mark.barrier != s.barrier) return false;
  const unsigned warp = s.thread / 32;
  const unsigned other = (mark.thread & kSeveral) != 0 ? mark.thread & ~kSeveral : mark.thread / 32;
  return mark.thread == kAnyone || other != warp || mark.warp_barrier == s.warp_barriers[warp];
}

std::string Other(const State& s, const Mark& mark, const char* verb) {
  if (mark.block != s.block) {
    return StrFormat("block %u %s it in the same launch", mark.block - s.first_block, verb);
  }
  return ThreadName(mark.thread) + " " + verb + " it since the last barrier";
}

void NoteRead(const State& s, Cell& cell, const Mark& mine) {
  Mark& read = cell.read;
  if (read.block >= s.first_block && read.block != s.block) cell.shared_by_blocks = s.launch;
  const bool same = read.block == mine.block && read.barrier == mine.barrier;
  if (!same || read.thread == mine.thread) {
    read = mine;
    return;
  }
  const bool several = (read.thread & kSeveral) != 0;
  const unsigned warp = several ? read.thread & ~kSeveral : read.thread / 32;
  read.atomic &= mine.atomic;
  if (read.thread == kAnyone || warp != s.thread / 32) {
    read.thread = kAnyone;
  } else {
    read.thread = static_cast<uint16_t>(kSeveral | warp);
    read.warp_barrier = mine.warp_barrier;
  }
}

// The first fault of an access counts.
void Check(State& s, uintptr_t at, size_t bytes, Kind kind, bool shared) {
  const bool reads = kind != Kind::kWrite && kind != Kind::kAtomicWrite;
  const bool writes = kind != Kind::kRead && kind != Kind::kAtomicRead;
  const bool atomic = kind != Kind::kRead && kind != Kind::kWrite;
  const Mark mine{s.block, s.barrier, s.warp_barriers[s.thread / 32],
                  static_cast<uint16_t>(s.thread), atomic};
  bool seen = false;
  const auto fault = [&](const std::string& what) {
    if (!seen) Fault(s, at, bytes, kind, what);
    seen = true;
  };
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = CellOf(s, at + i);
    if (reads) {
      if (shared && cell.write.block != s.block) fault("shared memory that its block has not set");
      if (!(atomic && cell.write.atomic) && Races(s, cell.write, shared)) {
        fault(Other(s, cell.write, "wrote"));
      }
      NoteRead(s, cell, mine);
    }
    if (!writes) continue;
    if (!(atomic && cell.write.atomic) && Races(s, cell.write, shared)) {
      fault(Other(s, cell.write, "wrote"));
    }
    if (!(atomic && cell.read.atomic) && Races(s, cell.read, shared)) {
      fault(Other(s, cell.read, "read"));
    }
    if (!atomic && !shared && cell.shared_by_blocks == s.launch) fault("other blocks read it");
    cell.write = mine;
  }
}

void CheckBounds(State& s, uintptr_t at, size_t bytes, Kind kind) {
  if (at >= s.known && at + bytes <= s.known_end) return;
  Allocations& all = Live();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto next = all.live.upper_bound(at);
  if (next != all.live.begin()) {
    const auto [begin, end] = *std::prev(next);
    if (at + bytes <= end) {
      s.known = begin;
      s.known_end = end;
      return;
    }
    if (at < end + AccessCheck::kRedZone) {
      return Fault(s, at, bytes, kind,
                   StrFormat("the allocation of %zu bytes ends there", size_t{end - begin}));
    }
  }
  if (next != all.live.end() && at + AccessCheck::kRedZone >= next->first) {
    Fault(s, at, bytes, kind, "an allocation begins after it");
  }
}

}  // namespace

void AccessCheck::BeginLaunch() {
  State& s = Now();
  ++s.launch;
  launched = true;
  s.first_block = s.block + 1;
  s.known = s.known_end = 0;
  s.faults.clear();
  s.fault_count = 0;
}
void AccessCheck::EndLaunch() {
  State& s = Now();
  launched = false;
  if (s.fault_count == 0) return;
  ADD_FAILURE() << s.fault_count << " faults of a kernel, the first:\n" << s.faults;
}
void AccessCheck::BeginBlock(const void* shared, size_t shared_bytes) {
  State& s = Now();
  ++s.block;
  s.barrier = 0;
  for (uint32_t& barrier : s.warp_barriers) barrier = 0;
  s.shared = reinterpret_cast<uintptr_t>(shared);
  s.shared_end = s.shared + shared_bytes;
}
void AccessCheck::Resume(unsigned thread, const void* stack, size_t stack_bytes) {
  State& s = Now();
  s.thread = thread;
  s.stack = reinterpret_cast<uintptr_t>(stack);
  s.stack_end = s.stack + stack_bytes;
}
void AccessCheck::BlockBarrier() { ++Now().barrier; }
void AccessCheck::WarpBarrier() { ++Now().warp_barriers[Now().thread / 32]; }
bool AccessCheck::Watch(bool on) {
  const bool was = watching;
  watching = on;
  return was;
}
void AccessCheck::Record(const void* memory, size_t bytes, Kind kind) {
  State& s = Now();
  const auto at = reinterpret_cast<uintptr_t>(memory);
  if (at >= s.stack && at < s.stack_end) return;
  const bool fixed =
      at >= reinterpret_cast<uintptr_t>(__data_start) && at < reinterpret_cast<uintptr_t>(_end);
  if (!fixed) CheckBounds(s, at, bytes, kind);
  Check(s, at, bytes, kind, fixed || (at >= s.shared && at < s.shared_end));
}

namespace {

void Hook(const void* at, size_t bytes, Kind kind) {
  if (watching) AccessCheck::Record(at, bytes, kind);
}

// What of it others freed unseen makes room.
void List(uintptr_t begin, size_t bytes) {
  Allocations& all = Live();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto next = all.live.lower_bound(begin);
  if (next != all.live.begin() && std::prev(next)->second > begin) next = std::prev(next);
  while (next != all.live.end() && next->first < begin + bytes) next = all.live.erase(next);
  all.live[begin] = begin + bytes;
}

// Before an allocation, within its red zone.
struct Header {
  size_t bytes;
  bool listed;
};

void* Allocate(size_t bytes) {
  constexpr size_t kZone = AccessCheck::kRedZone;
  auto* const memory = static_cast<unsigned char*>(std::malloc(bytes + 2 * kZone));
  if (memory == nullptr) throw std::bad_alloc();
  unsigned char* const begin = memory + kZone;
  // What the emulator needs for a moment is no memory of a kernel.
  const bool listed = !launched;
  *reinterpret_cast<Header*>(memory) = {bytes, listed};
  if (listed) List(reinterpret_cast<uintptr_t>(begin), bytes);
  return begin;
}
void Deallocate(void* begin) {
  if (begin == nullptr) return;
  unsigned char* const memory = static_cast<unsigned char*>(begin) - AccessCheck::kRedZone;
  if (reinterpret_cast<Header*>(memory)->listed) {
    Allocations& all = Live();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.live.erase(reinterpret_cast<uintptr_t>(begin));
  }
  std::free(memory);
}

}  // namespace
}  // namespace nibble::cuda

void* operator new(size_t bytes) { return nibble::cuda::Allocate(bytes); }
void operator delete(void* memory) noexcept { nibble::cuda::Deallocate(memory); }
void operator delete(void* memory, size_t) noexcept { nibble::cuda::Deallocate(memory); }

extern "C" {
// Memory of the CPU backend.
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes + nibble::cuda::AccessCheck::kRedZone) != 0) {
    return nullptr;
  }
  nibble::cuda::List(reinterpret_cast<uintptr_t>(memory), bytes);
  return memory;
}

// What the compiler calls.
#define NIBBLE_HOOKS(bytes)                                                                       \
  void __tsan_read##bytes(void* at) { nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kRead); } \
  void __tsan_write##bytes(void* at) {                                                            \
    nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kWrite);                                    \
  }                                                                                               \
  void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }                         \
  void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }                       \
  void __tsan_volatile_read##bytes(void* at) {                                                    \
    nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kAtomicRead);                               \
  }                                                                                               \
  void __tsan_volatile_write##bytes(void* at) {                                                   \
    nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kAtomicWrite);                              \
  }
NIBBLE_HOOKS(1)
NIBBLE_HOOKS(2)
NIBBLE_HOOKS(4)
NIBBLE_HOOKS(8)
NIBBLE_HOOKS(16)
#undef NIBBLE_HOOKS
void __tsan_read_range(void* at, size_t bytes) {
  nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kRead);
}
void __tsan_write_range(void* at, size_t bytes) {
  nibble::cuda::Hook(at, bytes, nibble::cuda::Kind::kWrite);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Atomics of the standard library, as they are.
#define NIBBLE_ATOMICS(bits, T)                                                                   \
  T __tsan_atomic##bits##_load(const volatile T* at, int) {                                       \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile T* at, T value, int) {                                \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                \
  }                                                                                               \
  T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                                \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                      \
  }                                                                                               \
  T __tsan_atomic##bits##_fetch_add(volatile T* at, T value, int) {                               \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  T __tsan_atomic##bits##_fetch_sub(volatile T* at, T value, int) {                               \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* at, T expected, T value, int, int) {   \
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    return expected;                                                                              \
  }
NIBBLE_ATOMICS(8, uint8_t)
NIBBLE_ATOMICS(32, uint32_t)
NIBBLE_ATOMICS(64, uint64_t)
#undef NIBBLE_ATOMICS
}  // extern "C"
