// Memory operations that are more than a load or a store: atomics, asynchronous copies, mbarriers, the debug ring.
#include "machine.h"
#include <cmath>
#include <cstring>

static const u8* shared_of(const void* p) {  // null when p is not near this block's shared memory
  const u8 *shared = M->current->block->shared, *q = (const u8*)p;
  return q >= shared - SLACK && q < shared + SHARED_MOST ? q : nullptr;
}

static std::string place(const void* p) {
  const u8* q = shared_of(p);
  char text[64];
  if (q) snprintf(text, sizeof text, "shared+%td", q - M->current->block->shared);
  else snprintf(text, sizeof text, "address %p", p);
  return text;
}

// -- atomics -------------------------------------------------------------------------------------------------

enum Op { ADD, MIN, MAX, AND, OR, XOR, EXCH, CAS, LOAD, STORE };
enum Type { I8, U8, I16, U16, I32, U32, I64, U64, F32, F64, F16, BF16 };
static const int BYTES[] = {1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 2, 2};

template <class A, class B> static A as(B b) {
  A a;
  memcpy(&a, &b, sizeof a);
  return a;
}

static float widen(u16 h, bool bf16) {
  if (bf16) return as<float>((u32)h << 16);
  u32 sign = (h & 0x8000) << 16, code = h & 0x7fff;
  if (code < 0x400) return as<float>(as<u32>((float)code * 0x1p-24f) | sign);
  return as<float>(sign | ((code << 13) + (code < 0x7c00 ? 112u << 23 : 224u << 23)));
}

static u16 narrow(float x, bool bf16) {
  u32 bits = as<u32>(x), sign = bits >> 16 & 0x8000, m = bits & 0x7fffffff;
  if (bf16) return m > 0x7f800000 ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  if (m > 0x7f800000) return 0x7e00;
  if (m < 113u << 23) return (u16)(sign | (as<u32>(fabsf(x) + 0.5f) - 0x3f000000));
  u32 code = ((m + 0xfff + (m >> 13 & 1)) >> 13) - (112u << 10);
  return (u16)(sign | (code < 0x7c00 ? code : 0x7c00));
}

template <class F> static F float_op(int op, F a, F b) {
  if (op == ADD) return a + b;
  if (a != a) return b;
  if (b != b) return a;
  if (a == 0 && b == 0) return op == MAX ? a + b : -(-a + -b);
  return (op == MAX) == (a > b) ? a : b;
}

template <class I> static u64 int_op(int op, u64 old, u64 v) {
  I a = (I)old, b = (I)v;
  switch (op) {
    case ADD: return old + v;
    case MIN: return (u64)(a < b ? a : b);
    case MAX: return (u64)(a > b ? a : b);
    case AND: return old & v;
    case OR: return old | v;
    default: return old ^ v;
  }
}

static u64 combine(int op, int type, u64 old, u64 v) {
  switch (type) {
    case I8: return int_op<int8_t>(op, old, v);
    case U8: return int_op<uint8_t>(op, old, v);
    case I16: return int_op<int16_t>(op, old, v);
    case U16: return int_op<uint16_t>(op, old, v);
    case I32: return int_op<int32_t>(op, old, v);
    case U32: return int_op<uint32_t>(op, old, v);
    case I64: return int_op<int64_t>(op, old, v);
    case U64: return int_op<uint64_t>(op, old, v);
    case F32: return as<u32>(float_op(op, as<float>((u32)old), as<float>((u32)v)));
    case F64: return as<u64>(float_op(op, as<double>(old), as<double>(v)));
    default: return narrow(float_op(op, widen((u16)old, type == BF16), widen((u16)v, type == BF16)), type == BF16);
  }
}

// Blocks may run in other workers, so the machine's own atomics do the exchange.
template <class U> static u64 exchange(int op, int type, U* p, u64 v, u64 expected) {
  if (op == LOAD) return __atomic_load_n(p, __ATOMIC_SEQ_CST);
  if (op == EXCH || op == STORE) return __atomic_exchange_n(p, (U)v, __ATOMIC_SEQ_CST);
  if (op == CAS) {
    U seen = (U)expected;
    __atomic_compare_exchange_n(p, &seen, (U)v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return seen;
  }
  U seen = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &seen, (U)combine(op, type, seen, v), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return seen;
}

extern "C" u64 tlr_atomic(int op, int type, void* p, u64 v, u64 expected, int order) {
  u64 pc = CALLER;
  int bytes = BYTES[type];
  if (op != LOAD) progress();
  if ((u64)p % bytes) {
    report("misaligned", pc, 0, "an atomic operation of %d bytes at %s", bytes, place(p).c_str());
    abort_launch();
  }
  if (M->o->check) {
    check_access(p, bytes, op == LOAD ? ATOMIC_LOAD : op == STORE ? ATOMIC_STORE : ATOMIC_UPDATE, pc);
    if (order & RELEASE) release(p);
  }
  u64 old;
  switch (bytes) {
    case 1: old = exchange(op, type, (u8*)p, v, expected); break;
    case 2: old = exchange(op, type, (u16*)p, v, expected); break;
    case 4: old = exchange(op, type, (u32*)p, v, expected); break;
    default: old = exchange(op, type, (u64*)p, v, expected);
  }
  if (M->o->check && (order & ACQUIRE)) acquire(p);
  return old;
}

extern "C" void tlr_set_nibble(u8* p, int64_t i, int v) {
  u64 pc = CALLER;
  u8* byte = p + i / 2;
  progress();
  if (M->o->check) check_access(byte, 1, ATOMIC_STORE, pc);
  int shift = i & 1 ? 4 : 0;
  u8 seen = __atomic_load_n(byte, __ATOMIC_RELAXED), made;
  do made = (u8)((seen & ~(15 << shift)) | (v & 15) << shift);
  while (!__atomic_compare_exchange_n(byte, &seen, made, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

// -- asynchronous copies -------------------------------------------------------------------------------------

static void perform(AsyncCopy& c) {
  if (c.done) return;
  memcpy(c.dst, c.src, c.bytes);
  memset(c.dst + c.bytes, 0, c.size - c.bytes);
  c.done = true;
}

extern "C" {

void tlr_cp_async(void* dst, const void* src, int size, int bytes) {
  u64 pc = CALLER;
  Fiber* me = M->current;
  if (!shared_of(dst)) {
    report("out of bounds", pc, 0, "cp.async: the destination is not in shared memory (thread %d)", me->tid);
    abort_launch();
  }
  if (bytes < 0 || bytes > size) {
    report("cp.async", pc, 0, "reads %d of %d bytes (thread %d)", bytes, size, me->tid);
    bytes = bytes < 0 ? 0 : size;
  }
  if ((u64)dst % size || (bytes && (u64)src % size))
    report("misaligned", pc, 0, "cp.async of %d bytes from %s to %s (thread %d)", size, place(src).c_str(), place(dst).c_str(), me->tid);
  AsyncCopy c{(u8*)dst, (const u8*)src, size, bytes, false, pc};
  if (M->o->check) check_async_begin(c);
  if (M->o->late == EARLY || (M->o->late == ANY_TIME && next_random() & 4)) perform(c);
  me->open.push_back(c);
}

void tlr_cp_async_commit() {
  Fiber* me = M->current;
  me->groups.push_back(std::move(me->open));
  me->open.clear();
}

void tlr_cp_async_wait(int n) {
  Fiber* me = M->current;
  size_t finished = me->groups.size() > (size_t)n ? me->groups.size() - n : 0;
  for (size_t i = 0; i < finished; i++)
    for (AsyncCopy& c : me->groups[i]) {
      perform(c);
      if (M->o->check) check_async_end(c);
    }
  me->groups.erase(me->groups.begin(), me->groups.begin() + finished);
}

// -- mbarriers -----------------------------------------------------------------------------------------------

static Mbarrier* mbarrier_at(u64* p, u64 pc) {
  Block* b = M->current->block;
  const u8* q = shared_of(p);
  if (!q || (u64)p % 8) {
    report("mbarrier", pc, 0, "%s is no place for an mbarrier", place(p).c_str());
    abort_launch();
  }
  auto it = b->mbarriers.find((u32)(q - b->shared));
  if (it == b->mbarriers.end()) {
    report("mbarrier", pc, 0, "the mbarrier at %s is used before it is initialised", place(p).c_str());
    abort_launch();
  }
  if (M->o->check) check_access(p, 8, ATOMIC_UPDATE, pc);
  return &it->second;
}

void tlr_mbar_init(u64* p, u32 count) {
  u64 pc = CALLER;
  Block* b = M->current->block;
  const u8* q = shared_of(p);
  if (!q || (u64)p % 8 || !count || count > 0xfffff) {
    report("mbarrier", pc, 0, "an mbarrier of %u arrivals at %s", count, place(p).c_str());
    abort_launch();
  }
  if (M->o->check) check_access(p, 8, WRITE, pc);
  Mbarrier& m = b->mbarriers[(u32)(q - b->shared)];
  m = Mbarrier();
  m.count = m.pending = count;
  if (M->o->check) m.gathered.assign(M->threads, 0);
}

void tlr_mbar_arrive(u64* p) {
  u64 pc = CALLER;
  Fiber* me = M->current;
  Mbarrier& m = *mbarrier_at(p, pc);
  progress();
  if (M->o->check) {
    me->clocks[me->tid] = me->clock++;
    join(m.gathered, me->clocks);
    join(m.known, me->known);
  }
  if (--m.pending) return;
  m.phase++;
  m.pending = m.count;
  m.released = m.gathered;
  u64 offset = (u64)((const u8*)p - me->block->shared);
  for (Fiber& f : me->block->fibers)
    if (f.waiting == AT_MBARRIER && (f.detail & 0xffffffff) == offset) wake(&f);
}

void tlr_mbar_wait(u64* p, u32 parity) {
  u64 pc = CALLER;
  Fiber* me = M->current;
  Mbarrier& m = *mbarrier_at(p, pc);
  if (parity > 1) report("mbarrier", pc, 0, "waits for parity %u, which is neither 0 nor 1", parity);
  while ((m.phase & 1) == (parity & 1)) park(AT_MBARRIER, (u64)(parity & 1) << 32 | (u64)((const u8*)p - me->block->shared), pc);
  if (M->o->check) {
    join(me->clocks, m.released);
    join(me->known, m.known);
  }
}

// -- the ring of messages to the host -------------------------------------------------------------------------

void tlr_report(u64* ring, int kind, int site, int count, const u64* words) {
  u64 size = 3 + (u64)count, at = __atomic_fetch_add(ring, size, __ATOMIC_RELAXED);
  progress();
  if (at + size > ring[1]) return;
  ring[at] = (u64)kind;
  ring[at + 1] = (u64)site;
  ring[at + 2] = (u64)count;
  memcpy(ring + at + 3, words, 8 * (size_t)count);
}

void tlr_check_aligned(const void* p, int bytes) {
  const u8* q = (const u8*)p;
  if (!((u64)p % bytes) || (q >= M->stacks && q < M->stacks + M->stacks_bytes)) return;
  report("misaligned", CALLER, 0, "an access of %d bytes at %s (thread %d)", bytes, place(p).c_str(), M->current->tid);
}
}
