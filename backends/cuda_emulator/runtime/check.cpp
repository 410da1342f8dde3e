// The checker: every access of shared and global memory, against bounds, initialisation and happens-before.
//
// A barrier of the whole block ends an epoch: accesses of earlier epochs are ordered. Inside an epoch, and between
// blocks, vector clocks say what a thread knows: they travel through syncwarp, named barriers, mbarriers and atomics
// with release and acquire. Loads and stores come here because kernels are compiled with -fsanitize=thread and the
// hooks at the end are ours (the sanitizer's own runtime is not linked).
#include "machine.h"
#include <link.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

struct Shadow {
  Buffer buffer;
  std::vector<std::unique_ptr<Cell[]>> pages;
  Readers readers;
};
static const u64 PAGE = 1024, RED_ZONE = 64 * 1024;
static std::vector<Shadow> shadows;  // by address
static std::unordered_map<u64, Known> released;
static u64 module_begin, module_end;
extern "C" thread_local View tl_view;

void report(const char* kind, u64 pc, u64 other, const char* format, ...) {
  for (Report& r : M->result->reports)
    if (r.pc == pc && r.other == other && r.kind == kind) {
      r.count++;
      return;
    }
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  M->result->reports.push_back({kind, text, pc, other, 1});
}

// Two threads that write one element are no race if they write the same bytes. A hook comes before its store, so the
// verdict waits for whatever is checked next: the storing thread does nothing else before it.
struct Suspect {
  const char* kind;
  std::string text;
  u64 pc, other;
  const u8* at;
  std::string old;
};
static std::vector<Suspect> suspects;

void judge_suspects() {
  for (const Suspect& s : suspects)
    if (memcmp(s.at, s.old.data(), s.old.size())) report(s.kind, s.pc, s.other, "%s", s.text.c_str());
  suspects.clear();
}

// -- launch and block ----------------------------------------------------------------------------------------

void check_begin(const LaunchOptions& o) {
  shadows.clear();
  released.clear();
  suspects.clear();
  for (u32 i = 0; i < o.buffers; i++) {
    shadows.emplace_back();
    shadows.back().buffer = o.buffer[i];
    u64 cells = (o.buffer[i].bytes + o.buffer[i].granule - 1) / o.buffer[i].granule;
    shadows.back().pages.resize((cells + PAGE - 1) / PAGE);
  }
  std::sort(shadows.begin(), shadows.end(), [](const Shadow& a, const Shadow& b) { return a.buffer.address < b.buffer.address; });
  module_begin = module_end = 0;
  dl_iterate_phdr([](dl_phdr_info* info, size_t, void* entry) {
    u64 low = ~0ull, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
      if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
      u64 begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
      low = std::min(low, begin);
      high = std::max<u64>(high, begin + info->dlpi_phdr[i].p_memsz);
    }
    if ((u64)entry < low || (u64)entry >= high) return 0;
    module_begin = low;
    module_end = high;
    return 1;
  }, (void*)o.entry);
}

void check_block(Block* b) {
  judge_suspects();
  b->cells.resize(M->o->shared_bytes);
  b->readers.clear();
  b->log.clear();
  for (Fiber& f : b->fibers) f.clocks.assign(M->threads, 0);
}

// -- clocks --------------------------------------------------------------------------------------------------

void join(Clocks& into, const Clocks& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

static void join(Known& into, u32 block, const Snapshot& s) {
  Snapshot& mine = into[block];
  mine.epoch = std::max(mine.epoch, s.epoch);
  join(mine.clocks, s.clocks);
}

void join(std::shared_ptr<Known>& into, const std::shared_ptr<Known>& from) {
  if (!from || from == into) return;
  if (!into) {
    into = from;
    return;
  }
  into = std::make_shared<Known>(*into);
  for (auto& [block, s] : *from) join(*into, block, s);
}

void synchronised(const std::vector<Fiber*>& threads) {
  Clocks all;
  std::shared_ptr<Known> known;
  for (Fiber* f : threads) {
    f->clocks[f->tid] = f->clock++;
    join(all, f->clocks);
    join(known, f->known);
  }
  for (Fiber* f : threads) {
    f->clocks = all;
    f->known = known;
  }
}

void barrier_passed(Block* b) {
  std::shared_ptr<Known> known;
  for (Fiber& f : b->fibers) join(known, f.known);
  if (known)
    for (Fiber& f : b->fibers) f.known = known;
}

void release(void* p) {
  Fiber* me = M->current;
  me->clocks[me->tid] = me->clock++;
  Known& at = released[(u64)p];
  join(at, me->block->serial, Snapshot{me->block->epoch, me->clocks});
  if (me->known)
    for (auto& [block, s] : *me->known) join(at, block, s);
}

void acquire(void* p) {
  auto it = released.find((u64)p);
  if (it == released.end()) return;
  Fiber* me = M->current;
  auto known = std::make_shared<Known>();
  for (auto& [block, s] : it->second)
    if (block == me->block->serial) join(me->clocks, s.clocks);
    else (*known)[block] = s;
  if (!known->empty()) join(me->known, known);
}

static bool ordered(const Access& a) {
  Fiber* me = M->current;
  if (a.block == me->block->serial) return a.epoch < me->block->epoch || a.thread == me->tid || me->clocks[a.thread] >= a.clock;
  if (!me->known) return false;
  auto it = me->known->find(a.block);
  return it != me->known->end() && (a.epoch < it->second.epoch || (a.thread < it->second.clocks.size() && it->second.clocks[a.thread] >= a.clock));
}

// -- cells ---------------------------------------------------------------------------------------------------

struct Where {  // what a cell belongs to, for messages
  const Shadow* shadow;
  u64 offset;
  const u8* at() const { return (shadow ? (const u8*)shadow->buffer.address : M->current->block->shared) + offset; }
  std::string text() const {
    return (shadow ? std::string(shadow->buffer.name) : std::string("shared")) + "+" + std::to_string(offset);
  }
};

static std::string who(const Access& a) {
  Fiber* me = M->current;
  std::string s = "thread " + std::to_string(a.thread);
  if (a.block == me->block->serial) return s;
  for (auto& b : M->blocks)
    if (b->serial == a.block) {
      char text[64];
      snprintf(text, sizeof text, " of block (%u, %u, %u)", b->index.x, b->index.y, b->index.z);
      return s + text;
    }
  return s + " of another block";
}

// at: where plain writes meet, `bytes` long; null: values say nothing.
static void race(const Access& before, u64 pc, const Where& w, const char* was, const char* is, const char* why, const u8* at = nullptr, u64 bytes = 0) {
  const char* kind = before.block == M->current->block->serial ? "race" : "race between blocks";
  std::string text = w.text() + ": " + was + " by " + who(before) + ", " + is + " by thread " + std::to_string(M->current->tid) + why;
  if (at) suspects.push_back({kind, text, pc, before.pc, at, std::string((const char*)at, bytes)});
  else report(kind, pc, before.pc, "%s", text.c_str());
}

static const char* const NO_BARRIER = ", and nothing orders them";
static const char* const IN_FLIGHT = " while the asynchronous copy is in flight";

static Access access_now(u64 pc, u16 flags) {
  Fiber* me = M->current;
  return {me->block->serial, me->block->epoch, me->clock, (u16)me->tid, flags, pc};
}

static void remember_reader(Cell& c, Readers& readers, u64 key, Access now) {
  Access& rd = c.reader;
  // A thread's reads follow its atomic writes in the table: later writers must be ordered after both.
  bool same = rd.block == now.block && rd.thread == now.thread && (rd.flags & WROTE) == (now.flags & WROTE);
  bool later = rd.block == now.block && rd.epoch < now.epoch;  // earlier readers are ordered before all that follows
  if (!rd.block || (!(rd.flags & MANY) && (same || later))) {
    rd = now;
    return;
  }
  std::vector<Access>& all = readers[key];
  if (!(rd.flags & MANY)) all.assign(1, rd);
  if (later)
    all.erase(std::remove_if(all.begin(), all.end(), [&](const Access& a) { return a.block == now.block && a.epoch < now.epoch; }), all.end());
  now.flags |= MANY;
  if (same && !all.empty()) all.back() = now;
  else all.push_back(now);
  rd = now;
}

// The first of the cell's readers that meets the condition and is not ordered before this thread; null: there is none.
template <class F> static const Access* unordered_reader(const Cell& c, Readers& readers, u64 key, F matters) {
  const Access& rd = c.reader;
  if (!rd.block) return nullptr;
  if (!(rd.flags & MANY)) return matters(rd) && !ordered(rd) ? &rd : nullptr;
  for (const Access& a : readers[key])
    if (matters(a) && !ordered(a)) return &a;
  return nullptr;
}

// One access of one cell; false after a report. written: something was written there before, by whomever.
static bool touch_cell(Cell& c, const Where& w, Readers& readers, u64 key, bool written, Touch touch, u16 flags, u64 pc) {
  Access& wr = c.writer;
  bool reads = touch != WRITE && touch != ATOMIC_STORE, writes = touch != READ && touch != ATOMIC_LOAD, atomic = touch >= ATOMIC_LOAD;
  const char* is = reads ? "read" : "written";
  if (reads && !written) {
    report("uninitialised", pc, 0, "%s is read by thread %d before anything was written there", w.text().c_str(), M->current->tid);
    wr = access_now(pc, POISON);
  }
  bool fine = !(reads && (wr.flags & POISON));
  if (wr.block && !(wr.flags & POISON)) {
    if (wr.flags & PENDING) {
      race(wr, pc, w, "asynchronously written", is, IN_FLIGHT);
      fine = false;
    } else if (!(atomic && (wr.flags & ATOMIC)) && !ordered(wr)) {
      bool plain = touch == WRITE && !((wr.flags | flags) & (ATOMIC | PENDING));
      race(wr, pc, w, "written", is, NO_BARRIER, plain ? w.at() : nullptr, w.shadow ? w.shadow->buffer.granule : 1);
      fine = plain;
    }
  }
  if (fine) {
    const Access* before = unordered_reader(c, readers, key, [&](const Access& a) {
      return writes ? !(atomic && (a.flags & ATOMIC)) : !atomic && (a.flags & WROTE);
    });
    if (before) {
      race(*before, pc, w, before->flags & WROTE ? "atomically written" : "read", is, NO_BARRIER);
      fine = false;
    }
  }
  if (!fine && !writes && !(wr.flags & POISON)) return false;
  Access now = access_now(pc, flags | (atomic ? ATOMIC : 0));
  if (writes && (!atomic || !written)) {
    wr = now;
    c.reader = Access{};
  } else {
    if (writes) now.flags |= WROTE;
    remember_reader(c, readers, key, now);
  }
  return fine;
}

// -- accesses ------------------------------------------------------------------------------------------------

// The block's cells of [p, p + bytes), or null after a report.
static Cell* shared_cells(const u8* p, int bytes, Touch touch, u64 pc) {
  Block* b = M->current->block;
  long offset = p - b->shared;
  if (offset < 0 || offset + bytes > (long)M->o->shared_bytes) {
    report("out of bounds", pc, 0, "%s of %d bytes at shared%+ld by thread %d; the block has %u bytes", touch == READ || touch == ATOMIC_LOAD ? "read" : "write", bytes, offset, M->current->tid, M->o->shared_bytes);
    return nullptr;
  }
  if ((M->o->check & CHECK_BANKS) && b->log.size() < (1u << 22)) b->log.push_back({pc, (u32)offset, (u16)M->current->tid, (u16)bytes});
  Cell* cells = &b->cells[offset];
  for (int i = 0; i < bytes; i++)
    if (cells[i].writer.block != b->serial) cells[i] = Cell{};  // of an earlier block
  return cells;
}

static void global_access(const u8* p, int bytes, Touch touch, u64 pc) {
  bool write = touch != READ && touch != ATOMIC_LOAD;
  u64 at = (u64)p;
  auto it = std::upper_bound(shadows.begin(), shadows.end(), at, [](u64 x, const Shadow& s) { return x < s.buffer.address; });
  Shadow* s = it == shadows.begin() ? nullptr : &*(it - 1);
  if (s && at < s->buffer.address + s->buffer.bytes) {
    u64 offset = at - s->buffer.address;
    if (offset + bytes > s->buffer.bytes) {
      report("out of bounds", pc, 0, "%s of %d bytes at %s+%llu by thread %d; it has %llu bytes", write ? "write" : "read", bytes, s->buffer.name, (unsigned long long)offset, M->current->tid, (unsigned long long)s->buffer.bytes);
      return;
    }
    if (!(s->buffer.flags & BUFFER_WRITTEN)) {
      if (write) report("out of bounds", pc, 0, "write at %s+%llu by thread %d, which the kernel only reads", s->buffer.name, (unsigned long long)offset, M->current->tid);
      return;
    }
    u64 first = offset / s->buffer.granule, last = (offset + bytes - 1) / s->buffer.granule;
    for (u64 i = first; i <= last; i++) {
      std::unique_ptr<Cell[]>& page = s->pages[i / PAGE];
      if (!page) page.reset(new Cell[PAGE]());
      Cell& c = page[i % PAGE];
      bool written = c.writer.block || !(s->buffer.flags & BUFFER_UNINITIALISED);
      if (!touch_cell(c, Where{s, i * s->buffer.granule}, s->readers, i, written, touch, 0, pc)) return;
    }
    return;
  }
  if ((at >= module_begin && at < module_end) || (at >= (u64)&tl_view && at < (u64)(&tl_view + 1))) return;
  if (M->o->check & FOREIGN) return;
  const Shadow* near = nullptr;
  long best = 0;
  for (const Shadow& x : shadows) {
    long away = at < x.buffer.address ? (long)(at - x.buffer.address) : (long)(at - (x.buffer.address + x.buffer.bytes)) + 1;
    if (!near || labs(away) < labs(best)) near = &x, best = away;
  }
  bool harmless = near && (u64)labs(best) < RED_ZONE;
  if (harmless)
    report("out of bounds", pc, 0, "%s of %d bytes at %s%+lld by thread %d; it has %llu bytes", write ? "write" : "read", bytes, near->buffer.name, (long long)(at - near->buffer.address), M->current->tid, (unsigned long long)near->buffer.bytes);
  else
    report("out of bounds", pc, 0, "%s of %d bytes at address 0x%llx by thread %d, which is in no buffer; the launch ends here", write ? "write" : "read", bytes, (unsigned long long)at, M->current->tid);
  if (!harmless) abort_launch();
}

static void shared_access(const u8* p, int bytes, Touch touch, u16 flags, u64 pc) {
  Block* b = M->current->block;
  Cell* cells = shared_cells(p, bytes, touch, pc);
  if (!cells) return;
  for (int i = 0; i < bytes; i++) {
    u64 offset = p + i - b->shared;
    bool written = cells[i].writer.block == b->serial;
    if (!touch_cell(cells[i], Where{nullptr, offset}, b->readers, offset, written, touch, flags, pc) && touch == READ) return;
  }
}

void check_access(const void* address, int bytes, Touch touch, u64 pc) {
  const u8* p = (const u8*)address;
  if (!suspects.empty()) judge_suspects();
  if (p >= M->stacks && p < M->stacks + M->stacks_bytes) return;
  if (p < M->shared_memory || p >= M->shared_memory + M->shared_bytes) global_access(p, bytes, touch, pc);
  else shared_access(p, bytes, touch, 0, pc);
}

void check_async_begin(const AsyncCopy& c) {
  judge_suspects();
  if (c.bytes) check_access(c.src, c.bytes, READ, c.pc);
  shared_access(c.dst, c.size, WRITE, PENDING, c.pc);
}

void check_async_end(const AsyncCopy& c) {
  Block* b = M->current->block;
  long offset = c.dst - b->shared;
  if (offset < 0 || offset + c.size > (long)M->o->shared_bytes) return;
  for (int i = 0; i < c.size; i++)
    if (b->cells[offset + i].writer.pc == c.pc) b->cells[offset + i].writer = access_now(c.pc, 0);
}

// -- bank conflicts ------------------------------------------------------------------------------------------

// The k-th execution of an instruction by each lane of a warp is one access of the warp. Accesses of 8 and 16 bytes
// go in halves and quarters of the warp; each phase takes as many wavefronts as its busiest bank has different words.
void flush_conflicts(Block* b) {
  std::map<std::pair<u64, int>, std::vector<std::vector<Logged>>> warps;
  for (const Logged& l : b->log) {
    auto& lanes = warps[{l.pc, l.tid / 32}];
    lanes.resize(32);
    lanes[l.tid % 32].push_back(l);
  }
  b->log.clear();
  for (auto& [key, lanes] : warps) {
    size_t times = 0;
    for (auto& lane : lanes) times = std::max(times, lane.size());
    Conflict& total = M->result->conflicts[key.first];
    for (size_t k = 0; k < times; k++) {
      int bytes = 4;
      for (auto& lane : lanes)
        if (k < lane.size()) bytes = std::max<int>(bytes, lane[k].bytes);
      int step = 32 / (bytes / 4);
      total.accesses++;
      for (int first = 0; first < 32; first += step) {
        std::map<u32, std::vector<u32>> banks;
        size_t most = 0;
        for (int l = first; l < first + step; l++)
          if (k < lanes[l].size())
            for (u32 word = lanes[l][k].offset / 4; word <= (lanes[l][k].offset + lanes[l][k].bytes - 1) / 4; word++) {
              std::vector<u32>& words = banks[word % 32];
              if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
              most = std::max(most, words.size());
            }
        total.wavefronts += most;
        total.ideal += most > 0;
      }
    }
  }
}

// -- what the compiler calls ----------------------------------------------------------------------------------

static inline void hook(const void* p, int bytes, Touch touch, u64 pc) {
  if (M && M->o->check) check_access(p, bytes, touch, pc);
}

extern "C" {
#define HOOKS(N) \
  void __tsan_read##N(void* p) { hook(p, N, READ, CALLER); } \
  void __tsan_write##N(void* p) { hook(p, N, WRITE, CALLER); } \
  void __tsan_read_write##N(void* p) { hook(p, N, READ, CALLER); hook(p, N, WRITE, CALLER); } \
  void __tsan_unaligned_read##N(void* p) { hook(p, N, READ, CALLER); } \
  void __tsan_unaligned_write##N(void* p) { hook(p, N, WRITE, CALLER); } \
  void __tsan_unaligned_read_write##N(void* p) { hook(p, N, READ, CALLER); hook(p, N, WRITE, CALLER); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { hook(p, (int)n, READ, CALLER); }
void __tsan_write_range(void* p, size_t n) { hook(p, (int)n, WRITE, CALLER); }
void* __tsan_memset(void* p, int v, size_t n) { hook(p, (int)n, WRITE, CALLER); return memset(p, v, n); }
void* __tsan_memcpy(void* p, const void* q, size_t n) {
  hook(q, (int)n, READ, CALLER);
  hook(p, (int)n, WRITE, CALLER);
  return memcpy(p, q, n);
}
void* __tsan_memmove(void* p, const void* q, size_t n) {
  hook(q, (int)n, READ, CALLER);
  hook(p, (int)n, WRITE, CALLER);
  return memmove(p, q, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
