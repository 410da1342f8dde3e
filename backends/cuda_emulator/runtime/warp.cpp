// What the lanes of a warp do together: shuffles, votes, ldmatrix, mma. Each lane parks with its operands; the last one
// of its group to come computes for all. Fragment layouts are those of the PTX ISA (tests/ptx_tables.py has them as
// data).
#include "machine.h"
#include <cmath>
#include <cstring>

enum { SYNC = 8, SHUFFLE = 16, VOTE = 32, LDMATRIX = 64, MMA = 128 };
enum { BALLOT, ALL, MATCH_ANY, MATCH_ALL, ACTIVE };

static void run(Block* b, int warp, u32 group);

static Fiber* lane_of(Block* b, int warp, int lane) {
  int tid = warp * 32 + lane;
  return tid < M->threads ? &b->fibers[tid] : nullptr;
}

// The lanes of a mask that are still there.
static u32 present(Block* b, int warp, u32 mask) {
  for (int l = 0; l < 32; l++) {
    Fiber* f = lane_of(b, warp, l);
    if (!f || f->waiting == ENDED) mask &= ~(1u << l);
  }
  return mask;
}

static std::string lanes_text(u32 mask) {
  std::vector<int> lanes;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) lanes.push_back(l);
  std::string s = threads_text(lanes);
  return s.replace(0, s[6] == 's' ? 7 : 6, s[6] == 's' ? "lanes" : "lane");
}

static void complete(Block* b, int warp, u32 group) {
  Warp& w = b->warps[warp];
  int first = __builtin_ctz(group);
  for (int l = first + 1; l < 32; l++) {
    if (!(group >> l & 1)) continue;
    if (w.offer[l].kind != w.offer[first].kind || w.offer[l].mask != w.offer[first].mask)
      report("divergent warp", w.offer[first].pc, w.offer[l].pc, "lanes %d and %d of warp %d meet in different operations or with masks %08x and %08x", first, l, warp, w.offer[first].mask, w.offer[l].mask);
  }
  w.arrived &= ~group;
  run(b, warp, group);
  for (int l = 0; l < 32; l++)
    if (group >> l & 1) wake(lane_of(b, warp, l));
}

static Offer& own_offer(u64 pc) {
  Fiber* me = M->current;
  Offer& o = me->block->warps[me->tid / 32].offer[me->tid & 31];
  o.pc = pc;
  return o;
}

// This lane's offer is made; returns when its group has met.
static void meet(Offer& o) {
  Fiber* me = M->current;
  Block* b = me->block;
  int warp = me->tid / 32, lane = me->tid & 31;
  Warp& w = b->warps[warp];
  progress();
  w.arrived |= 1u << lane;
  if (!(o.mask >> lane & 1)) {
    report("divergent warp", o.pc, 0, "lane %d of warp %d is not in its own mask %08x", lane, warp, o.mask);
    o.mask |= 1u << lane;
  }
  u32 group = present(b, warp, o.mask);
  if ((w.arrived & group) == group) complete(b, warp, group);
  else park(AT_WARP, (u64)warp << 32 | o.mask, o.pc);
}

void warp_lane_ended(Fiber* f) {
  Block* b = f->block;
  int warp = f->tid / 32, lane = f->tid & 31;
  Warp& w = b->warps[warp];
  for (int l = 0; l < 32; l++) {
    if (!(w.arrived >> l & 1) || !(w.offer[l].mask >> lane & 1)) continue;
    if (!f->left) report("divergent warp", w.offer[l].pc, 0, "lane %d of warp %d has ended; %s of its warp wait for it", lane, warp, lanes_text(w.arrived).c_str());
    u32 group = present(b, warp, w.offer[l].mask);
    if (group && (w.arrived & group) == group) complete(b, warp, group);
  }
}

void warp_settles(Block* b, int warp) {
  Warp& w = b->warps[warp];
  u32 here = w.blind;
  w.blind = 0;
  while (here) {
    u64 pc = w.offer[__builtin_ctz(here)].pc;
    u32 group = 0;
    for (int l = 0; l < 32; l++)
      if ((here >> l & 1) && w.offer[l].pc == pc) group |= 1u << l;
    for (int l = 0; l < 32; l++)
      if (group >> l & 1) {
        w.offer[l].result = group;
        wake(lane_of(b, warp, l));
      }
    here &= ~group;
  }
}

// -- element types -------------------------------------------------------------------------------------------

static float f16_value(u32 h) {
  u32 sign = (h & 0x8000) << 16, code = h & 0x7fff, bits;
  float f = (float)code * 0x1p-24f;
  if (code >= 0x400) {
    bits = (code << 13) + (code < 0x7c00 ? 112u << 23 : 224u << 23);
    memcpy(&f, &bits, 4);
  }
  memcpy(&bits, &f, 4);
  bits |= sign;
  memcpy(&f, &bits, 4);
  return f;
}
static float bf16_value(u32 h) {
  u32 bits = h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static float e5m2_value(u32 c) { return f16_value(c << 8); }
static float e4m3_value(u32 c) {
  if ((c & 0x7f) == 0x7f) return NAN;
  int e = c >> 3 & 15;
  float f = e ? ldexpf(8 + (c & 7), e - 10) : ldexpf(c & 7, -9);
  return c & 0x80 ? -f : f;
}
static float tf32_value(u32 u) {
  u &= 0xffffe000;  // the instruction does not look at the low bits
  float f;
  memcpy(&f, &u, 4);
  return f;
}
struct Table8 {
  float v[256];
  explicit Table8(float (*f)(u32)) {
    for (u32 i = 0; i < 256; i++) v[i] = f(i);
  }
};
struct Table16 {
  float v[65536];
  Table16() {
    for (u32 i = 0; i < 65536; i++) v[i] = f16_value(i);
  }
};
static const Table8 E4M3(e4m3_value), E5M2(e5m2_value);
static const Table16 F16;

static u16 f16_code(float x) {  // nearest even
  u32 bits;
  memcpy(&bits, &x, 4);
  u32 sign = bits >> 16 & 0x8000, m = bits & 0x7fffffff;
  if (m > 0x7f800000) return 0x7e00;
  if (m < 113u << 23) {
    float a = fabsf(x) + 0.5f;
    u32 r;
    memcpy(&r, &a, 4);
    return (u16)(sign | (r - 0x3f000000));
  }
  u32 code = ((m + 0xfff + (m >> 13 & 1)) >> 13) - (112u << 10);
  return (u16)(sign | (code < 0x7c00 ? code : 0x7c00));
}

// -- matrix instructions -------------------------------------------------------------------------------------

// Kinds in the order of tl_host.h. per: elements in a register; depth: k; what the elements of A and B are.
enum Element { E_F16, E_BF16, E_TF32, E_S8, E_U8, E_E4M3, E_E5M2 };
struct MmaKind { int per, depth; Element a, b; bool integer, halves; };
static const MmaKind KINDS[12] = {
    {2, 16, E_F16, E_F16, false, false}, {2, 16, E_BF16, E_BF16, false, false}, {2, 16, E_F16, E_F16, false, true},
    {1, 8, E_TF32, E_TF32, false, false}, {4, 32, E_S8, E_S8, true, false}, {4, 32, E_S8, E_U8, true, false},
    {4, 32, E_U8, E_S8, true, false}, {4, 32, E_U8, E_U8, true, false}, {4, 32, E_E4M3, E_E4M3, false, false},
    {4, 32, E_E4M3, E_E5M2, false, false}, {4, 32, E_E5M2, E_E4M3, false, false}, {4, 32, E_E5M2, E_E5M2, false, false}};

static inline float element(Element e, u32 word, int j) {
  switch (e) {
    case E_F16: return F16.v[word >> 16 * j & 0xffff];
    case E_BF16: return bf16_value(word >> 16 * j & 0xffff);
    case E_TF32: return tf32_value(word);
    case E_S8: return (float)(int8_t)(word >> 8 * j);
    case E_U8: return (float)(u8)(word >> 8 * j);
    case E_E4M3: return E4M3.v[word >> 8 * j & 0xff];
    default: return E5M2.v[word >> 8 * j & 0xff];
  }
}

static void mma_16x8(Warp& w, const MmaKind& kind) {
  float a[16][32], b[32][8];
  for (int l = 0; l < 32; l++) {
    int g = l >> 2, q = l & 3, n = kind.per;
    const u32 *ra = (const u32*)w.offer[l].p[1], *rb = (const u32*)w.offer[l].p[2];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < n; j++) a[g + (i & 1) * 8][(q + (i >> 1) * 4) * n + j] = element(kind.a, ra[i], j);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < n; j++) b[(q + i * 4) * n + j][g] = element(kind.b, rb[i], j);
  }
  if (kind.integer) {
    u32 c[16][8];
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) c[(l >> 2) + (i >> 1) * 8][2 * (l & 3) + (i & 1)] = ((u32*)w.offer[l].p[0])[i];
    for (int m = 0; m < 16; m++)
      for (int k = 0; k < kind.depth; k++)
        for (int n = 0; n < 8; n++) c[m][n] += (u32)((int)a[m][k] * (int)b[k][n]);
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) ((u32*)w.offer[l].p[0])[i] = c[(l >> 2) + (i >> 1) * 8][2 * (l & 3) + (i & 1)];
    return;
  }
  float c[16][8];
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      const void* d = w.offer[l].p[0];
      c[(l >> 2) + (i >> 1) * 8][2 * (l & 3) + (i & 1)] =
          kind.halves ? F16.v[((const u32*)d)[i >> 1] >> 16 * (i & 1) & 0xffff] : ((const float*)d)[i];
    }
  for (int m = 0; m < 16; m++) {  // one FMA chain per element, k ascending: the interpreter's gemm on these types
    float sum[8];
    memcpy(sum, c[m], sizeof sum);
    for (int k = 0; k < kind.depth; k++)
      for (int n = 0; n < 8; n++) sum[n] = __builtin_fmaf(a[m][k], b[k][n], sum[n]);
    memcpy(c[m], sum, sizeof sum);
  }
  for (int l = 0; l < 32; l++) {
    void* d = w.offer[l].p[0];
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = c[(l >> 2) + (i >> 1) * 8][2 * (l & 3) + (i & 1)];
    if (kind.halves)
      for (int i = 0; i < 2; i++) ((u32*)d)[i] = f16_code(v[2 * i]) | (u32)f16_code(v[2 * i + 1]) << 16;
    else
      memcpy(d, v, sizeof v);
  }
}

static void mma_8x8x4(Warp& w) {
  double a[8][4], b[4][8];
  for (int l = 0; l < 32; l++) {
    a[l >> 2][l & 3] = *(const double*)w.offer[l].p[1];
    b[l & 3][l >> 2] = *(const double*)w.offer[l].p[2];
  }
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 2; i++) {
      double& d = ((double*)w.offer[l].p[0])[i];
      for (int k = 0; k < 4; k++) d = __builtin_fma(a[l >> 2][k], b[k][2 * (l & 3) + i], d);
    }
}

static void ldmatrix(Warp& w, int count, bool trans) {
  for (int m = 0; m < count; m++) {
    u16 t[8][8];
    for (int r = 0; r < 8; r++) memcpy(t[r], w.offer[m * 8 + r].p[1], 16);
    for (int l = 0; l < 32; l++) {
      int r = l / 4, c = l % 4 * 2;
      ((u32*)w.offer[l].p[0])[m] = trans ? t[c][r] | (u32)t[c + 1][r] << 16 : t[r][c] | (u32)t[r][c + 1] << 16;
    }
  }
}

// -- shuffles and votes --------------------------------------------------------------------------------------

static u64 shuffled(Warp& w, u32 group, int lane, int kind) {
  Offer& o = w.offer[lane];
  int width = o.b, base = lane & ~(width - 1), source;
  switch (kind) {
    case 0: source = base | (o.a & (width - 1)); break;
    case 1: source = lane - o.a < base ? lane : lane - o.a; break;
    case 2: source = lane + o.a >= base + width ? lane : lane + o.a; break;
    default: source = lane ^ o.a; if (source >= base + width || source < 0) source = lane;
  }
  if (!(o.mask >> source & 1)) return o.value;
  return group >> source & 1 ? w.offer[source].value : ~0ull;  // named, but not there: whatever the hardware holds
}

static u64 voted(Warp& w, u32 group, int lane, int kind) {
  u32 result = 0;
  for (int l = 0; l < 32; l++)
    if (group >> l & 1) result |= (u32)(kind == BALLOT || kind == ALL ? w.offer[l].value != 0 : w.offer[l].value == w.offer[lane].value) << l;
  if (kind == BALLOT || kind == MATCH_ANY) return result;
  return result == group ? group : 0;
}

static void run(Block* b, int warp, u32 group) {
  Warp& w = b->warps[warp];
  int kind = w.offer[__builtin_ctz(group)].kind;
  if (kind >= LDMATRIX && group != 0xffffffff) {
    report("divergent warp", w.offer[__builtin_ctz(group)].pc, 0, "a matrix instruction needs all 32 lanes; warp %d brings %s", warp, lanes_text(group).c_str());
    return;
  }
  if (kind >= MMA) {
    if (kind - MMA == 12) mma_8x8x4(w);
    else mma_16x8(w, KINDS[kind - MMA]);
  } else if (kind >= LDMATRIX) {
    ldmatrix(w, kind - LDMATRIX & 7, kind - LDMATRIX >= 8);
  } else if (kind >= VOTE || kind >= SHUFFLE) {
    u64 results[32];
    for (int l = 0; l < 32; l++)
      if (group >> l & 1) results[l] = kind >= VOTE ? voted(w, group, l, kind - VOTE) : shuffled(w, group, l, kind - SHUFFLE);
    for (int l = 0; l < 32; l++)
      if (group >> l & 1) w.offer[l].result = results[l];
  } else if (M->o->check) {
    std::vector<Fiber*> threads;
    for (int l = 0; l < 32; l++)
      if (group >> l & 1) threads.push_back(lane_of(b, warp, l));
    synchronised(threads);
  }
}

extern "C" {

void tlr_syncwarp(u32 mask) {
  Offer& o = own_offer(CALLER);
  o.kind = SYNC;
  o.mask = mask;
  meet(o);
}

u64 tlr_shuffle(int kind, u32 mask, u64 v, int lane, int width) {
  Offer& o = own_offer(CALLER);
  o.kind = SHUFFLE + kind;
  o.mask = mask;
  o.value = v;
  o.a = lane;
  o.b = width;
  if (width < 1 || width > 32 || (width & (width - 1))) {
    report("shuffle", o.pc, 0, "a segment of %d lanes; it must be 1, 2, 4, 8, 16 or 32", width);
    o.b = 32;
  }
  meet(o);
  return o.result;
}

u64 tlr_vote(int kind, u32 mask, u64 v) {
  Offer& o = own_offer(CALLER);
  o.kind = VOTE + kind;
  o.mask = mask;
  o.value = v;
  if (kind != ACTIVE) {
    meet(o);
    return o.result;
  }
  Fiber* me = M->current;
  progress();
  me->block->warps[me->tid / 32].blind |= 1u << (me->tid & 31);
  park(AT_WARP, me->tid / 32, o.pc);
  return o.result;
}

void tlr_ldmatrix(u32* r, const void* row, int count, int trans) {
  Offer& o = own_offer(CALLER);
  o.kind = LDMATRIX + count + 8 * trans;
  o.mask = 0xffffffff;
  o.p[0] = r;
  o.p[1] = (void*)row;
  if ((M->current->tid & 31) < 8 * count) {
    const u8* shared = M->current->block->shared;
    const u8* p = (const u8*)row;
    if (p < shared - SLACK || p >= shared + SHARED_MOST) {
      report("out of bounds", o.pc, 0, "ldmatrix: the row of lane %d is not in shared memory", M->current->tid & 31);
      abort_launch();
    }
    if ((u64)row & 15) report("misaligned", o.pc, 0, "ldmatrix: the row of lane %d is at shared+%td, not a multiple of 16", M->current->tid & 31, p - shared);
    if (M->o->check) check_access(row, 16, READ, o.pc);
  }
  meet(o);
}

void tlr_mma(int kind, void* d, const void* a, const void* b) {
  Offer& o = own_offer(CALLER);
  o.kind = MMA + kind;
  o.mask = 0xffffffff;
  o.p[0] = d;
  o.p[1] = (void*)a;
  o.p[2] = (void*)b;
  meet(o);
}
}
