// Scheduling: who runs next, barriers, launching a grid block by block (or all blocks at once), deadlocks.
#include "machine.h"
#include "switch.h"
#include <dlfcn.h>
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

thread_local Machine* M;
extern "C" {
thread_local View tl_view __attribute__((tls_model("initial-exec")));
}
static const u64 CANARY = 0x5ca1ab1e0ddba11ull;
static const u64 FAIR = 64;  // of so many picks of the last to come, one is of anybody
static const u64 SPINS_MOST = 20000;  // rounds per thread in which nothing but waiting loops ran
static std::atomic<u32> serials{1};

u64 next_random() {
  M->random ^= M->random << 13;
  M->random ^= M->random >> 7;
  M->random ^= M->random << 17;
  return M->random;
}

// -- choosing -----------------------------------------------------------------------------------------------

static Fiber* take() {
  std::vector<Fiber*>& q = M->ready;
  size_t n = q.size() - M->head;
  if (!n) return nullptr;
  Fiber* f;
  if (M->o->order == ORDER_FIRST) {
    f = q[M->head++];
    if (M->head > 8192) {
      q.erase(q.begin(), q.begin() + M->head);
      M->head = 0;
    }
  } else {
    // A block that waits for another one by rounds of barriers, and no waiting loop, is always the last to come.
    bool last = M->o->order == ORDER_LAST && ++M->picks % FAIR;
    size_t i = last ? q.size() - 1 : M->head + next_random() % n;
    f = q[i];
    q[i] = q.back();
    q.pop_back();
  }
  f->queued = false;
  return f;
}

static void go(Fiber* f) {
  M->current = f;
  M->result->switches++;
  tl_view.thread = f->index;
  tl_view.block = f->block->index;
  tl_view.shared = f->block->shared;
}

static void switch_to(void** save, Fiber* f) {
  go(f);
  tlr_switch(save, f->sp);
}

static void stuck();

// The next thread that can run; when none can, warps settle (a collective without a mask waits for that) or we are stuck.
static Fiber* next() {
  for (;;) {
    if (Fiber* f = take()) return f;
    for (auto& b : M->blocks)
      for (size_t w = 0; w < b->warps.size(); w++)
        if (b->warps[w].blind) warp_settles(b.get(), (int)w);
    if (M->ready.size() == M->head) return nullptr;
  }
}

void wake(Fiber* f) {
  if (f->waiting == READY) return;
  f->waiting = READY;
  f->queued = true;
  M->ready.push_back(f);
}

void progress() { M->spins = 0; }

void abort_launch() {
  M->aborted = true;
  void* dead;
  tlr_switch(&dead, M->home);
  __builtin_unreachable();
}

void park(Waiting why, u64 detail, u64 pc) {
  Fiber* me = M->current;
  me->waiting = why;
  me->detail = detail;
  me->pc = pc;
  Fiber* f = next();
  if (!f) {
    stuck();
    abort_launch();
  }
  if (f != me) switch_to(&me->sp, f);
}

std::string threads_text(const std::vector<int>& tids) {
  std::string s = tids.size() == 1 ? "thread " : "threads ";
  for (size_t i = 0, shown = 0; i < tids.size(); shown++) {
    size_t j = i;
    while (j + 1 < tids.size() && tids[j + 1] == tids[j] + 1) j++;
    if (shown == 6) return s + ", ...";
    s += (shown ? ", " : "") + std::to_string(tids[i]) + (j > i ? "-" + std::to_string(tids[j]) : "");
    i = j + 1;
  }
  return s;
}

static void stuck() {
  static const char* NAMES[] = {"nothing", "tl_sync", "tl_sync_named ", "a warp's operation", "the mbarrier at shared+", "a loop that waits", ""};
  for (auto& b : M->blocks) {
    std::map<std::pair<std::pair<int, u64>, u64>, std::vector<int>> groups;
    for (Fiber& f : b->fibers)
      if (f.waiting != ENDED) groups[{{f.waiting, f.detail}, f.pc}].push_back(f.tid);
    if (groups.empty()) continue;
    std::string list;
    u64 pc = 0, other = 0;
    for (auto& [key, tids] : groups) {
      int why = key.first.first;
      list += (list.empty() ? "" : "; ") + threads_text(tids) + (tids.size() == 1 ? " waits at " : " wait at ") + NAMES[why];
      if (why == AT_NAMED || why == AT_MBARRIER) list += std::to_string(key.first.second & 0xffffffff);
      if (why == AT_MBARRIER) list += " for parity " + std::to_string(key.first.second >> 32);
      (pc ? other : pc) = key.second;
    }
    report("deadlock", pc, other, "no thread of block (%u, %u, %u) can go on: %s", b->index.x, b->index.y, b->index.z, list.c_str());
  }
}

// -- barriers -----------------------------------------------------------------------------------------------

static void open_barrier(Block* b) {
  int others = M->threads - b->alive - b->left;
  if (others) report("divergent barrier", b->barrier.pc, 0, "%d of %d threads wait at a barrier that the other %d have passed by", b->barrier.arrived, M->threads, others);
  if (M->o->check) barrier_passed(b);
  b->epoch++;
  b->vote = b->barrier.votes;
  std::vector<Fiber*> threads;
  threads.swap(b->barrier.threads);
  b->barrier = Barrier();
  for (Fiber* f : threads) wake(f);
}

static void arrive_block(int site, int votes, u64 pc) {
  Fiber* me = M->current;
  Block* b = me->block;
  Barrier& bar = b->barrier;
  progress();
  if (bar.arrived && bar.site != site) report("divergent barrier", pc, bar.pc, "thread %d comes to one barrier of the block while %d threads wait at another", me->tid, bar.arrived);
  bar.site = site;
  bar.pc = pc;
  bar.votes += votes;
  bar.threads.push_back(me);
  if (++bar.arrived == b->alive) open_barrier(b);
  else park(AT_BARRIER, 0, pc);
}

static void ended() {
  Fiber* me = M->current;
  Block* b = me->block;
  if (*(u64*)me->stack != CANARY)
    report("stack overflow", 0, 0, "local arrays of thread %d need more than %zu KiB", me->tid, M->stack_bytes >> 10);
  me->waiting = ENDED;
  b->alive--;
  b->left += me->left;
  progress();
  warp_lane_ended(me);
  Barrier& bar = b->barrier;
  if (bar.arrived && bar.arrived == b->alive) open_barrier(b);
  Fiber* f = next();
  if (!f) {
    bool waiting = false;
    for (auto& x : M->blocks)
      for (Fiber& y : x->fibers) waiting |= y.waiting != ENDED;
    if (waiting) {
      stuck();
      M->aborted = true;
    }
    void* dead;
    tlr_switch(&dead, M->home);
  }
  void* dead;
  switch_to(&dead, f);
  __builtin_unreachable();
}

static void start() {
  M->o->entry(M->o->args);
  ended();
}

extern "C" {

void tlr_sync(int site) { arrive_block(site, 0, CALLER); }

int tlr_sync_vote(int site, int kind, int p) {
  Block* b = M->current->block;
  int present = b->alive;
  arrive_block(site, p, CALLER);
  return kind == 0 ? b->vote : kind == 1 ? b->vote >= present : b->vote > 0;
}

void tlr_sync_named(int site, int id, int count) {
  Fiber* me = M->current;
  Block* b = me->block;
  u64 pc = CALLER;
  progress();
  if (id < 1 || id > 15 || count % 32 || count <= 0 || count > M->threads) {
    report("barrier", pc, 0, "barrier %d of %d threads: the number must be 1 to 15, the count a multiple of 32 that the block has", id, count);
    return;
  }
  Barrier& bar = b->named[id];
  (void)site;
  if (bar.arrived && bar.expected != count) report("divergent barrier", pc, bar.pc, "thread %d brings the count %d to barrier %d, others %d", me->tid, count, id, bar.expected);
  bar.expected = count;
  bar.pc = pc;
  bar.threads.push_back(me);
  if (++bar.arrived < count) return park(AT_NAMED, id, pc);
  std::vector<Fiber*> threads;
  threads.swap(bar.threads);
  bar = Barrier();
  if (M->o->check) synchronised(threads);
  for (Fiber* f : threads) wake(f);
}

void tlr_exit() { M->current->left = true; }

void tlr_spin() {
  Fiber* me = M->current;
  u64 pc = CALLER;
  size_t alive = 0;
  for (auto& b : M->blocks) alive += b->alive;
  if (++M->spins > SPINS_MOST + 64 * alive) {
    me->waiting = SPINNING;
    me->pc = pc;
    for (size_t i = M->head; i < M->ready.size(); i++) M->ready[i]->waiting = SPINNING;
    stuck();
    abort_launch();
  }
  me->waiting = READY;
  me->pc = pc;
  me->queued = true;
  // Behind all others whatever the order, or the last to come would spin for ever.
  if (M->o->order == ORDER_LAST) M->ready.insert(M->ready.begin() + M->head, me);
  else M->ready.push_back(me);
  Fiber* f = take();
  if (f != me) switch_to(&me->sp, f);
}
}

// -- launching ----------------------------------------------------------------------------------------------

static void prepare(Block* b, u64 number, size_t slot) {
  const LaunchOptions& o = *M->o;
  b->serial = serials++;
  b->index = {(u32)(number % o.grid[0]), (u32)(number / o.grid[0] % o.grid[1]), (u32)(number / o.grid[0] / o.grid[1])};
  b->shared = M->shared_memory + SLACK + slot * (SHARED_MOST + SLACK);
  b->epoch = 1;
  b->alive = M->threads;
  b->left = b->vote = 0;
  b->barrier = Barrier();
  for (Barrier& n : b->named) n = Barrier();
  b->mbarriers.clear();
  b->fibers.resize(M->threads);
  b->warps.assign((M->threads + 31) / 32, Warp());
  // A pattern that is NaN in every float type, so that uninitialised memory shows in plain runs too.
  memset(b->shared, 0xff, std::min<size_t>(o.shared_bytes + 1024, SHARED_MOST));
  for (int i = 0; i < M->threads; i++) {
    Fiber& f = b->fibers[i];
    f.block = b;
    f.tid = i;
    f.waiting = READY;
    f.queued = true;
    f.left = false;
    f.pc = f.detail = 0;
    f.index = {i % o.block[0], i / o.block[0] % o.block[1], i / o.block[0] / o.block[1]};
    f.groups.clear();
    f.open.clear();
    f.clock = 1;
    f.known.reset();
    f.stack = (char*)M->stacks + (slot * M->threads + i) * M->stack_bytes;
    *(u64*)f.stack = CANARY;
    // Tops at different offsets, or the stacks of all threads would meet in the same lines of the cache.
    f.sp = fresh_stack(f.stack + M->stack_bytes - 64 - (i * 1088) % 16384 / 64 * 64, start);
    M->ready.push_back(&f);
  }
  if (o.check) check_block(b);
}

static void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

static int run_blocks(const LaunchOptions& o, Result* result, std::atomic<u64>& next_block, u64 blocks) {
  Machine machine{};
  M = &machine;
  machine.o = &o;
  machine.result = result;
  machine.threads = (int)(o.block[0] * o.block[1] * o.block[2]);
  machine.random = (o.seed + 1) * 0x9e3779b97f4a7c15ull;
  size_t resident = o.resident ? blocks : 1;
  size_t shared = SLACK + resident * (SHARED_MOST + SLACK);
  machine.stack_bytes = std::min<size_t>(size_t(64) << 20, std::max<size_t>(size_t(256) << 10, (size_t(256) << 20) / machine.threads)) & ~size_t(4095);
  if (resident > 1) machine.stack_bytes = 256 << 10;
  size_t stacks = resident * machine.threads * machine.stack_bytes;
  machine.shared_memory = (u8*)reserve(shared);
  machine.stacks = (u8*)reserve(stacks);
  machine.shared_bytes = shared;
  machine.stacks_bytes = stacks;
  int code = machine.shared_memory && machine.stacks ? 0 : 2;
  tl_view.block_dim = {o.block[0], o.block[1], o.block[2]};
  tl_view.grid_dim = {o.grid[0], o.grid[1], o.grid[2]};
  for (size_t i = 0; i < resident; i++) machine.blocks.push_back(std::make_unique<Block>());
  while (!code && !machine.aborted) {
    u64 first = next_block.fetch_add(resident);
    if (first >= blocks) break;
    machine.ready.clear();
    machine.head = machine.spins = 0;
    for (size_t i = 0; i < resident; i++) prepare(machine.blocks[i].get(), first + i, i);
    switch_to(&machine.home, take());  // back when the last thread has ended
    if (o.check) judge_suspects();
    if (o.check & CHECK_BANKS)
      for (auto& b : machine.blocks) flush_conflicts(b.get());
  }
  if (machine.shared_memory) munmap(machine.shared_memory, shared);
  if (machine.stacks) munmap(machine.stacks, stacks);
  M = nullptr;
  return code ? code : machine.aborted;
}

extern "C" {

// Runs the grid. 0: done; 1: given up (a report says why); 2: no memory. *out is to be given to tlr_free.
int tlr_launch(const LaunchOptions* o, Result** out) {
  u64 blocks = (u64)o->grid[0] * o->grid[1] * o->grid[2];
  Result* all = *out = new Result;
  std::atomic<u64> next_block{0};
  if (o->check) check_begin(*o);
  u32 workers = o->check || o->resident ? 1 : (u32)std::min<u64>(std::max(1u, o->workers), blocks);
  if (workers <= 1) return run_blocks(*o, all, next_block, blocks);
  std::vector<std::thread> crew;
  std::mutex lock;
  int code = 0;
  for (u32 i = 0; i < workers; i++)
    crew.emplace_back([&] {
      Result mine;
      int c = run_blocks(*o, &mine, next_block, blocks);
      std::lock_guard<std::mutex> hold(lock);
      code = std::max(code, c);
      all->switches += mine.switches;
      all->reports.insert(all->reports.end(), mine.reports.begin(), mine.reports.end());
    });
  for (std::thread& t : crew) t.join();
  return code;
}

void tlr_free(Result* r) { delete r; }
u64 tlr_base(void* p) {  // where the library that holds p is mapped: what its debug information counts from
  Dl_info info;
  return dladdr(p, &info) ? (u64)info.dli_fbase : 0;
}
u64 tlr_switches(const Result* r) { return r->switches; }
u64 tlr_report_count(const Result* r) { return r->reports.size(); }
void tlr_report_at(const Result* r, u64 i, const char** kind, const char** message, u64* numbers) {
  const Report& one = r->reports[i];
  *kind = one.kind.c_str();
  *message = one.message.c_str();
  numbers[0] = one.pc;
  numbers[1] = one.other;
  numbers[2] = one.count;
}
u64 tlr_conflicts(const Result* r, u64* rows, u64 most) {  // rows of (pc, accesses, wavefronts, ideal)
  u64 n = 0;
  for (auto& [pc, c] : r->conflicts) {
    if (n < most) {
      u64 row[4] = {pc, c.accesses, c.wavefronts, c.ideal};
      memcpy(rows + 4 * n, row, sizeof row);
    }
    n++;
  }
  return n;
}
}
