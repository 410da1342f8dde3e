// The device's side of the prelude: the only place with PTX. Compiled by NVRTC, includes nothing.

extern __shared__ __align__(1024) unsigned char tl_dynamic_shared[];
TL_FN tl_u8* tl_shared() { return tl_dynamic_shared; }
TL_FN tl_u32 tl_address_(const void* p) { return (tl_u32)__cvta_generic_to_shared(p); }
#define tl_exit() return

// -- arithmetic ----------------------------------------------------------------------------------------------

#define TL_FLOAT_(F, type, r, suffix) \
  TL_FN type tl_fma_##F(type a, type b, type c) { type d; asm("fma.rn." #F " %0, %1, %2, %3;" : "=" r(d) : r(a), r(b), r(c)); return d; } \
  TL_FN type tl_sqrt_##F(type a) { type d; asm("sqrt.rn." #F " %0, %1;" : "=" r(d) : r(a)); return d; } \
  TL_FN type tl_max_##F(type a, type b) { type d; asm("max." #F " %0, %1, %2;" : "=" r(d) : r(a), r(b)); return d; } \
  TL_FN type tl_min_##F(type a, type b) { type d; asm("min." #F " %0, %1, %2;" : "=" r(d) : r(a), r(b)); return d; } \
  TL_FN type tl_abs_##F(type a) { return fabs##suffix(a); } \
  TL_FN type tl_floor_##F(type a) { return floor##suffix(a); } \
  TL_FN type tl_ceil_##F(type a) { return ceil##suffix(a); } \
  TL_FN type tl_trunc_##F(type a) { return trunc##suffix(a); } \
  TL_FN type tl_rint_##F(type a) { return rint##suffix(a); }
TL_FLOAT_(f32, float, "f", f)
TL_FLOAT_(f64, double, "d", )

TL_FN float tl_fast_exp2_f32(float x) { float y; asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_log2_f32(float x) { float y; asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_sin_f32(float x) { float y; asm("sin.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_cos_f32(float x) { float y; asm("cos.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_tanh_f32(float x) { float y; asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_rcp_f32(float x) { float y; asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_rsqrt_f32(float x) { float y; asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TL_FN float tl_fast_exp_f32(float x) { return tl_fast_exp2_f32(x * 1.4426950408889634f); }
TL_FN float tl_fast_log_f32(float x) { return tl_fast_log2_f32(x) * 0.6931471805599453f; }

TL_FN tl_u32 tl_popcount_u32(tl_u32 x) { return (tl_u32)__popc(x); }
TL_FN tl_u64 tl_popcount_u64(tl_u64 x) { return (tl_u64)__popcll(x); }
TL_FN tl_u32 tl_clz_u32(tl_u32 x) { return (tl_u32)__clz((int)x); }
TL_FN tl_u64 tl_clz_u64(tl_u64 x) { return (tl_u64)__clzll((tl_i64)x); }
TL_FN tl_u32 tl_brev_u32(tl_u32 x) { return __brev(x); }
TL_FN tl_u64 tl_brev_u64(tl_u64 x) { return __brevll(x); }

// -- copies --------------------------------------------------------------------------------------------------

struct __align__(8) tl_b64_ { tl_u32 w[2]; };
struct __align__(16) tl_b128_ { tl_u32 w[4]; };
#define TL_COPY_(N, type) \
  TL_FN void tl_copy_##N(void* dst, const void* src) { *(type*)dst = *(const type*)src; } \
  TL_FN void tl_zero_##N(void* dst) { *(type*)dst = type(); }
TL_COPY_(1, tl_u8) TL_COPY_(2, tl_u16) TL_COPY_(4, tl_u32) TL_COPY_(8, tl_b64_) TL_COPY_(16, tl_b128_)

// -- barriers and the warp -----------------------------------------------------------------------------------

TL_FN int tl_thread_() { return (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }
TL_FN int tl_lane() { return tl_thread_() & 31; }
TL_FN int tl_warp() { return tl_thread_() >> 5; }
TL_FN void tl_sync() { __syncthreads(); }
TL_FN void tl_sync_named(int id, int count) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(count) : "memory"); }
TL_FN void tl_syncwarp(tl_u32 mask) { __syncwarp(mask); }
TL_FN int tl_sync_count(int p) { return __syncthreads_count(p); }
TL_FN int tl_sync_and(int p) { return __syncthreads_and(p) != 0; }
TL_FN int tl_sync_or(int p) { return __syncthreads_or(p) != 0; }
TL_FN tl_u32 tl_ballot(tl_u32 mask, int p) { return __ballot_sync(mask, p); }
TL_FN int tl_any(tl_u32 mask, int p) { return __any_sync(mask, p) != 0; }
TL_FN int tl_all(tl_u32 mask, int p) { return __all_sync(mask, p) != 0; }
TL_FN tl_u32 tl_activemask() { return __activemask(); }
TL_FN tl_u32 tl_match_any_u32(tl_u32 mask, tl_u32 v) { return __match_any_sync(mask, v); }
TL_FN tl_u32 tl_match_any_u64(tl_u32 mask, tl_u64 v) { return __match_any_sync(mask, v); }
TL_FN tl_u32 tl_match_all_u32(tl_u32 mask, tl_u32 v) { int p; return __match_all_sync(mask, v, &p); }
TL_FN tl_u32 tl_match_all_u64(tl_u32 mask, tl_u64 v) { int p; return __match_all_sync(mask, v, &p); }

// The instruction gives an undefined value where the source lane takes no part; the language gives the thread's own.
TL_FN int tl_part_(tl_u32 mask, int source) { return mask == TL_FULL || (mask >> (source & 31) & 1u) != 0u; }
#define TL_SHUFFLE_(T, type) \
  TL_FN type tl_shfl_##T(tl_u32 mask, type v, int lane, int width) { \
    type got = __shfl_sync(mask, v, lane, width); \
    return tl_part_(mask, (tl_lane() & ~(width - 1)) | (lane & (width - 1))) ? got : v; \
  } \
  TL_FN type tl_shfl_up_##T(tl_u32 mask, type v, int delta, int width) { \
    type got = __shfl_up_sync(mask, v, (unsigned)delta, width); \
    return tl_part_(mask, tl_lane() - delta) ? got : v; \
  } \
  TL_FN type tl_shfl_down_##T(tl_u32 mask, type v, int delta, int width) { \
    type got = __shfl_down_sync(mask, v, (unsigned)delta, width); \
    return tl_part_(mask, tl_lane() + delta) ? got : v; \
  } \
  TL_FN type tl_shfl_xor_##T(tl_u32 mask, type v, int lanes, int width) { \
    type got = __shfl_xor_sync(mask, v, lanes, width); \
    return tl_part_(mask, tl_lane() ^ lanes) ? got : v; \
  }
TL_SHUFFLE_(i32, tl_i32) TL_SHUFFLE_(u32, tl_u32) TL_SHUFFLE_(i64, tl_i64) TL_SHUFFLE_(u64, tl_u64)
TL_SHUFFLE_(f32, float) TL_SHUFFLE_(f64, double)

// -- fences and atomics --------------------------------------------------------------------------------------

TL_FN void tl_fence_block() { __threadfence_block(); }
TL_FN void tl_fence() { __threadfence(); }
TL_FN void tl_before_(int order) { if (order & TL_RELEASE) __threadfence(); }
TL_FN void tl_after_(int order) { if (order & TL_ACQUIRE) __threadfence(); }

// Words of 8 and 16 bits are parts of an aligned 32-bit word.
TL_FN tl_u32 tl_cas_part_(void* p, tl_u32 expected, tl_u32 v, tl_u32 ones) {
  tl_u32 shift = 8u * (tl_u32)((tl_u64)p & 3u);
  tl_u32* word = (tl_u32*)((tl_u64)p & ~3ull);
  tl_u32 seen = *(volatile tl_u32*)word;
  for (;;) {
    if ((seen >> shift & ones) != expected) return seen >> shift & ones;
    tl_u32 old = atomicCAS(word, seen, (seen & ~(ones << shift)) | v << shift);
    if (old == seen) return expected;
    seen = old;
  }
}
TL_FN tl_u8 tl_cas_(tl_u8* p, tl_u8 expected, tl_u8 v) { return (tl_u8)tl_cas_part_(p, expected, v, 0xffu); }
TL_FN tl_u16 tl_cas_(tl_u16* p, tl_u16 expected, tl_u16 v) { return (tl_u16)tl_cas_part_(p, expected, v, 0xffffu); }
TL_FN tl_u32 tl_cas_(tl_u32* p, tl_u32 expected, tl_u32 v) { return atomicCAS(p, expected, v); }
TL_FN tl_u64 tl_cas_(tl_u64* p, tl_u64 expected, tl_u64 v) { return atomicCAS(p, expected, v); }

// Whatever the hardware has no instruction for compares and swaps. OUT turns the stored word U into a value, IN back.
#define TL_LOOP_(OP, T, type, U, OUT, IN, NEW) \
  TL_FN type tl_atomic_##OP##_##T(type* p, type v, int order) { \
    tl_before_(order); \
    U seen = *(volatile U*)p; \
    for (;;) { \
      type old = OUT(seen); \
      U got = tl_cas_((U*)p, seen, IN(NEW)); \
      if (got == seen) { tl_after_(order); return old; } \
      seen = got; \
    } \
  }
#define TL_NATIVE_(OP, F, T, type, cast) \
  TL_FN type tl_atomic_##OP##_##T(type* p, type v, int order) { \
    tl_before_(order); \
    type old = (type)F((cast*)p, (cast)v); \
    tl_after_(order); \
    return old; \
  }
#define TL_SAME_(x) (x)
#define TL_MEMORY_(T, type, U, OUT, IN) \
  TL_LOOP_(exch, T, type, U, OUT, IN, v) \
  TL_FN type tl_atomic_cas_##T(type* p, type expected, type v, int order) { \
    tl_before_(order); \
    U old = tl_cas_((U*)p, IN(expected), IN(v)); \
    tl_after_(order); \
    return OUT(old); \
  } \
  TL_FN type tl_atomic_load_##T(const type* p, int order) { \
    tl_before_(order); \
    U bits = *(const volatile U*)p; \
    tl_after_(order); \
    return OUT(bits); \
  } \
  TL_FN void tl_atomic_store_##T(type* p, type v, int order) { \
    tl_before_(order); \
    *(volatile U*)p = IN(v); \
    tl_after_(order); \
  }
#define TL_WHOLE_(T, type, cast, U) \
  TL_NATIVE_(add, atomicAdd, T, type, U) TL_NATIVE_(max, atomicMax, T, type, cast) TL_NATIVE_(min, atomicMin, T, type, cast) \
  TL_NATIVE_(and, atomicAnd, T, type, U) TL_NATIVE_(or, atomicOr, T, type, U) TL_NATIVE_(xor, atomicXor, T, type, U) \
  TL_MEMORY_(T, type, U, TL_SAME_, (U))
TL_WHOLE_(i32, tl_i32, tl_i32, tl_u32) TL_WHOLE_(u32, tl_u32, tl_u32, tl_u32)
TL_WHOLE_(i64, tl_i64, tl_i64, tl_u64) TL_WHOLE_(u64, tl_u64, tl_u64, tl_u64)
#define TL_PART_(T, type, U) \
  TL_LOOP_(add, T, type, U, (type), (U), old + v) TL_LOOP_(max, T, type, U, (type), (U), old > v ? old : v) \
  TL_LOOP_(min, T, type, U, (type), (U), old < v ? old : v) TL_LOOP_(and, T, type, U, (type), (U), old & v) \
  TL_LOOP_(or, T, type, U, (type), (U), old | v) TL_LOOP_(xor, T, type, U, (type), (U), old ^ v) \
  TL_MEMORY_(T, type, U, (type), (U))
TL_PART_(i8, tl_i8, tl_u8) TL_PART_(u8, tl_u8, tl_u8) TL_PART_(i16, tl_i16, tl_u16) TL_PART_(u16, tl_u16, tl_u16)
TL_NATIVE_(add, atomicAdd, f32, float, float)
TL_NATIVE_(add, atomicAdd, f64, double, double)
#define TL_ATOMIC_FLOAT_(F, type, U) \
  TL_LOOP_(max, F, type, U, tl_##F##_bits, tl_bits_##F, tl_max_##F(old, v)) \
  TL_LOOP_(min, F, type, U, tl_##F##_bits, tl_bits_##F, tl_min_##F(old, v)) \
  TL_MEMORY_(F, type, U, tl_##F##_bits, tl_bits_##F)
TL_ATOMIC_FLOAT_(f32, float, tl_u32) TL_ATOMIC_FLOAT_(f64, double, tl_u64)
#define TL_WIDE_(N, F) tl_cvt_##N##_f32(F(tl_cvt_f32_##N(old), tl_cvt_f32_##N(v)))
#define TL_HALF_(N) \
  TL_LOOP_(add, N, tl_##N, tl_u16, TL_SAME_, TL_SAME_, tl_cvt_##N##_f32(tl_cvt_f32_##N(old) + tl_cvt_f32_##N(v))) \
  TL_LOOP_(max, N, tl_##N, tl_u16, TL_SAME_, TL_SAME_, TL_WIDE_(N, tl_max_f32)) \
  TL_LOOP_(min, N, tl_##N, tl_u16, TL_SAME_, TL_SAME_, TL_WIDE_(N, tl_min_f32)) \
  TL_MEMORY_(N, tl_##N, tl_u16, TL_SAME_, TL_SAME_)
TL_HALF_(f16) TL_HALF_(bf16)

TL_FN int tl_nibble_beside(const tl_u8* p, tl_i64 i) { return tl_nibble(p, i); }
TL_FN void tl_merge_nibble(tl_u8* p, tl_i64 i, int v) {
  tl_u64 at = (tl_u64)(p + i / 2);
  tl_u32 shift = 8u * (tl_u32)(at & 3u) + 4u * (tl_u32)(i & 1);
  atomicAnd((tl_u32*)(at & ~3ull), ~(15u << shift));
  atomicOr((tl_u32*)(at & ~3ull), ((tl_u32)v & 15u) << shift);
}

TL_FN void tl_spin() { __nanosleep(40); }
TL_FN void tl_sync_grid(tl_u32* state) {
  __syncthreads();
  if (tl_thread_() == 0) {
    tl_u32 blocks = gridDim.x * gridDim.y * gridDim.z;
    tl_u32 goal = (tl_atomic_add_u32(state, 1u, TL_RELEASE) / blocks + 1u) * blocks;
    while ((int)(tl_atomic_load_u32(state, TL_ACQUIRE) - goal) < 0) tl_spin();
  }
  __syncthreads();
}

// -- asynchronous copies -------------------------------------------------------------------------------------

#define TL_ASYNC_(N, kind) \
  TL_FN void tl_cp_async_##N(void* dst, const void* src) { \
    asm volatile("cp.async." kind ".shared.global [%0], [%1], " #N ";" :: "r"(tl_address_(dst)), "l"(src) : "memory"); \
  } \
  TL_FN void tl_cp_async_##N##_zfill(void* dst, const void* src, int bytes) { \
    asm volatile("cp.async." kind ".shared.global [%0], [%1], " #N ", %2;" \
                 :: "r"(tl_address_(dst)), "l"(src), "r"(bytes) : "memory"); \
  }
TL_ASYNC_(4, "ca") TL_ASYNC_(8, "ca") TL_ASYNC_(16, "cg")
TL_FN void tl_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define tl_cp_async_wait(n) asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory")

// -- matrix instructions -------------------------------------------------------------------------------------

#define TL_LDMATRIX_(SUFFIX, T) \
  TL_FN void tl_ldmatrix_x1##SUFFIX(tl_u32* r, const void* row) { \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" T ".shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(tl_address_(row)) : "memory"); \
  } \
  TL_FN void tl_ldmatrix_x2##SUFFIX(tl_u32* r, const void* row) { \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" T ".shared.b16 {%0, %1}, [%2];" \
                 : "=r"(r[0]), "=r"(r[1]) : "r"(tl_address_(row)) : "memory"); \
  } \
  TL_FN void tl_ldmatrix_x4##SUFFIX(tl_u32* r, const void* row) { \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" T ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(tl_address_(row)) : "memory"); \
  }
TL_LDMATRIX_(, "") TL_LDMATRIX_(_trans, ".trans")

#define TL_MMA_(NAME, PTX, type, r) \
  TL_FN void NAME(type* d, const tl_u32* a, const tl_u32* b) { \
    asm volatile("mma.sync.aligned." PTX " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+" r(d[0]), "+" r(d[1]), "+" r(d[2]), "+" r(d[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
TL_MMA_(tl_mma_m16n8k16_f32_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "f")
TL_MMA_(tl_mma_m16n8k16_f32_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
TL_MMA_(tl_mma_m16n8k8_f32_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", float, "f")
TL_MMA_(tl_mma_m16n8k32_i32_s8_s8, "m16n8k32.row.col.s32.s8.s8.s32", tl_i32, "r")
TL_MMA_(tl_mma_m16n8k32_i32_s8_u8, "m16n8k32.row.col.s32.s8.u8.s32", tl_i32, "r")
TL_MMA_(tl_mma_m16n8k32_i32_u8_s8, "m16n8k32.row.col.s32.u8.s8.s32", tl_i32, "r")
TL_MMA_(tl_mma_m16n8k32_i32_u8_u8, "m16n8k32.row.col.s32.u8.u8.s32", tl_i32, "r")
#if __CUDA_ARCH__ >= 890
TL_MMA_(tl_mma_m16n8k32_f32_e4m3_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32", float, "f")
TL_MMA_(tl_mma_m16n8k32_f32_e4m3_e5m2, "m16n8k32.row.col.f32.e4m3.e5m2.f32", float, "f")
TL_MMA_(tl_mma_m16n8k32_f32_e5m2_e4m3, "m16n8k32.row.col.f32.e5m2.e4m3.f32", float, "f")
TL_MMA_(tl_mma_m16n8k32_f32_e5m2_e5m2, "m16n8k32.row.col.f32.e5m2.e5m2.f32", float, "f")
#endif
TL_FN void tl_mma_m16n8k16_f16_f16(tl_u32* d, const tl_u32* a, const tl_u32* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
               : "+r"(d[0]), "+r"(d[1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TL_FN void tl_mma_m8n8k4_f64(double* d, const double* a, const double* b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1]) : "d"(a[0]), "d"(b[0]));
}

// -- mbarriers -----------------------------------------------------------------------------------------------

TL_FN void tl_mbar_init(tl_u64* b, tl_u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(tl_address_(b)), "r"(count) : "memory");
}
TL_FN void tl_mbar_arrive(tl_u64* b) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" :: "r"(tl_address_(b)) : "memory");
}
TL_FN void tl_mbar_wait(tl_u64* b, tl_u32 parity) {
  tl_u32 done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(tl_address_(b)), "r"(parity) : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(tl_address_(b)), "r"(parity) : "memory");
#endif
  } while (!done);
}

// -- messages to the host ------------------------------------------------------------------------------------

TL_FN void tl_report(tl_u64* ring, int kind, int site, int count, const tl_u64* words) {
  tl_u64 at = atomicAdd(ring, (tl_u64)(3 + count));
  if (at + 3 + count > ring[1]) return;
  ring[at] = (tl_u64)kind;
  ring[at + 1] = (tl_u64)site;
  ring[at + 2] = (tl_u64)count;
  for (int i = 0; i < count; i++) ring[at + 3 + i] = words[i];
}
