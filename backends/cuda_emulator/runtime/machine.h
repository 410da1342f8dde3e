// The emulated machine: threads as fibers, blocks with their shared memory, and one scheduler per worker.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

struct Dim3 { u32 x, y, z; };
struct View { Dim3 thread, block, block_dim, grid_dim; u8* shared; };  // tl_view_t of tl_host.h

// -- what Python hands over (machine.py mirrors these two) ---------------------------------------------------

struct Buffer { u64 address, bytes; u32 granule, flags; const char* name; };  // flags: see below
enum { BUFFER_WRITTEN = 1, BUFFER_UNINITIALISED = 2 };
struct LaunchOptions {
  void (*entry)(const u64*);
  const u64* args;
  u32 grid[3], block[3];
  u32 shared_bytes, order, late, check, resident, workers, buffers, pad;
  u64 seed;
  const Buffer* buffer;
};
enum { ORDER_FIRST, ORDER_LAST, ORDER_RANDOM };
enum { EARLY, LATE, ANY_TIME };        // when asynchronous copies happen
enum { CHECK = 1, CHECK_BANKS = 2, FOREIGN = 4 };  // FOREIGN: addresses may come from elsewhere
enum { RELAXED = 0, ACQUIRE = 1, RELEASE = 2 };

// -- threads --------------------------------------------------------------------------------------------------

struct Block;
typedef std::vector<u32> Clocks;  // per thread of a block: how much of it is known

// Where a thread of another block was when it released something that we acquired: all before `epoch`, and `clocks`.
struct Snapshot { u32 epoch; Clocks clocks; };
typedef std::map<u32, Snapshot> Known;  // by serial number of the block

struct AsyncCopy { u8* dst; const u8* src; int size, bytes; bool done; u64 pc; };

enum Waiting { READY, AT_BARRIER, AT_NAMED, AT_WARP, AT_MBARRIER, SPINNING, ENDED };

struct Fiber {
  void* sp;
  char* stack;
  Block* block;
  int tid;
  Waiting waiting;
  u64 detail, pc;       // what it waits for and where
  bool queued, left;    // left: ended by tl_exit
  Dim3 index;
  std::vector<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open;
  u32 clock;
  Clocks clocks;                 // checked runs only
  std::shared_ptr<Known> known;  // of other blocks; null: nothing
};

struct Offer { u32 mask; int kind; u64 value; int a, b; void* p[3]; u64 result; u64 pc; };  // of a lane at a collective
struct Warp { u32 arrived = 0, blind = 0; Offer offer[32]; };  // blind: lanes that asked without a mask

struct Barrier { int arrived = 0, site = -1, expected = 0; int votes = 0; u64 pc = 0; std::vector<Fiber*> threads; };
struct Mbarrier { u32 count, pending; u32 phase; Clocks gathered, released; std::shared_ptr<Known> known; u64 pc; };
struct Logged { u64 pc; u32 offset; u16 tid; u16 bytes; };  // an access of shared memory, for bank conflicts

// The last access of a cell of memory (a byte of shared, an element of global memory), for happens-before.
struct Access { u32 block, epoch, clock; u16 thread, flags; u64 pc; };
// MANY: `reader` is the last of several, which the side table has; POISON: never written, and reported. Atomic writes count
// among the readers (WROTE), so that they do not hide the last plain write.
enum { ATOMIC = 1, PENDING = 2, MANY = 4, POISON = 8, WROTE = 16 };
struct Cell { Access writer, reader; };
typedef std::unordered_map<u64, std::vector<Access>> Readers;

struct Block {
  u32 serial;  // unique in a process: shadows of earlier blocks and launches need no clearing
  Dim3 index;
  u8* shared;
  u32 epoch;  // number of barriers of the whole block so far
  int alive, left, vote;
  Barrier barrier, named[16];
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::map<u32, Mbarrier> mbarriers;
  std::vector<Logged> log;
  std::vector<Cell> cells;
  Readers readers;
};

struct Report { std::string kind, message; u64 pc, other; u64 count; };
struct Conflict { u64 accesses, wavefronts, ideal; };
struct Result {
  std::vector<Report> reports;
  std::map<u64, Conflict> conflicts;
  u64 switches = 0;
};

// -- one worker ------------------------------------------------------------------------------------------------

struct Machine {
  const LaunchOptions* o;
  Result* result;
  Fiber* current;
  void* home;  // stack pointer of the scheduler
  std::vector<Fiber*> ready;
  size_t head;
  u64 random;
  u64 spins;  // rounds of waiting loops since something else happened
  u64 picks;  // of the next thread
  int threads;
  bool aborted;
  u8* shared_memory;
  u8* stacks;
  size_t stack_bytes;
  std::vector<std::unique_ptr<Block>> blocks;
  size_t shared_bytes, stacks_bytes;  // of the two regions
};

extern thread_local Machine* M;
#define CALLER ((u64)__builtin_return_address(0))
static const u32 SHARED_MOST = 228 * 1024, SLACK = 64 * 1024;

// schedule.cpp
void park(Waiting why, u64 detail, u64 pc);  // until somebody wakes this thread
void wake(Fiber* f);
void progress();
[[noreturn]] void abort_launch();
u64 next_random();
std::string threads_text(const std::vector<int>& tids);

// warp.cpp: a lane that is READY has not been parked, so waking it does nothing
void warp_settles(Block* b, int warp);
void warp_lane_ended(Fiber* f);  // no lane of the warp that is elsewhere can come: collectives without a mask finish

// check.cpp
void report(const char* kind, u64 pc, u64 other, const char* format, ...) __attribute__((format(printf, 4, 5)));
void check_begin(const LaunchOptions& o);
void check_block(Block* b);
enum Touch { READ, WRITE, ATOMIC_LOAD, ATOMIC_STORE, ATOMIC_UPDATE };
void judge_suspects();
void check_access(const void* p, int bytes, Touch touch, u64 pc);
void check_async_begin(const AsyncCopy& c);
void check_async_end(const AsyncCopy& c);
void synchronised(const std::vector<Fiber*>& threads);  // they know all of each other now
void barrier_passed(Block* b);
void acquire(void* p), release(void* p);
void join(Clocks& into, const Clocks& from);
void join(std::shared_ptr<Known>& into, const std::shared_ptr<Known>& from);
void flush_conflicts(Block* b);
