// The host's side of the prelude: what needs other threads or is watched by the checker is a call of the emulator's
// runtime (tlr_*, backends/cuda_emulator/runtime); the rest is computed here. Compiled by any C++17 compiler.
#define __global__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__

struct tl_dim3 { unsigned x, y, z; };
struct tl_view_t {  // what the running thread sees; the scheduler writes it when it switches threads
  tl_dim3 thread, block, block_dim, grid_dim;
  tl_u8* shared;
};
extern "C" {
extern thread_local tl_view_t tl_view __attribute__((tls_model("initial-exec")));
void tlr_sync(int site);
void tlr_sync_named(int site, int id, int count);
int tlr_sync_vote(int site, int kind, int p);
void tlr_syncwarp(tl_u32 mask);
tl_u64 tlr_shuffle(int kind, tl_u32 mask, tl_u64 v, int lane, int width);
tl_u64 tlr_vote(int kind, tl_u32 mask, tl_u64 v);
void tlr_exit();
void tlr_spin();
void tlr_check_aligned(const void* p, int bytes);
tl_u64 tlr_atomic(int op, int type, void* p, tl_u64 v, tl_u64 expected, int order);
void tlr_set_nibble(tl_u8* p, tl_i64 i, int v);
void tlr_cp_async(void* dst, const void* src, int size, int bytes);
void tlr_cp_async_commit();
void tlr_cp_async_wait(int n);
void tlr_ldmatrix(tl_u32* r, const void* row, int count, int trans);
void tlr_mma(int kind, void* d, const void* a, const void* b);
void tlr_mbar_init(tl_u64* b, tl_u32 count);
void tlr_mbar_arrive(tl_u64* b);
void tlr_mbar_wait(tl_u64* b, tl_u32 parity);
void tlr_report(tl_u64* ring, int kind, int site, int count, const tl_u64* words);
float exp2f(float), expf(float), log2f(float), logf(float), sinf(float), cosf(float), tanhf(float);
}
#define threadIdx tl_view.thread
#define blockIdx tl_view.block
#define blockDim tl_view.block_dim
#define gridDim tl_view.grid_dim
TL_FN tl_u8* tl_shared() { return tl_view.shared; }
#define tl_exit() do { tlr_exit(); return; } while (0)

// -- arithmetic ----------------------------------------------------------------------------------------------

#define TL_FLOAT_(F, type, suffix) \
  TL_FN type tl_fma_##F(type a, type b, type c) { return __builtin_fma##suffix(a, b, c); } \
  TL_FN type tl_sqrt_##F(type a) { return __builtin_sqrt##suffix(a); } \
  TL_FN type tl_max_##F(type a, type b) { return a != a ? b : b != b ? a : a == 0 && b == 0 ? a + b : a > b ? a : b; } \
  TL_FN type tl_min_##F(type a, type b) { return a != a ? b : b != b ? a : a == 0 && b == 0 ? -(-a + -b) : a < b ? a : b; } \
  TL_FN type tl_abs_##F(type a) { return __builtin_fabs##suffix(a); } \
  TL_FN type tl_floor_##F(type a) { return __builtin_floor##suffix(a); } \
  TL_FN type tl_ceil_##F(type a) { return __builtin_ceil##suffix(a); } \
  TL_FN type tl_trunc_##F(type a) { return __builtin_trunc##suffix(a); } \
  TL_FN type tl_rint_##F(type a) { return __builtin_rint##suffix(a); }
TL_FLOAT_(f32, float, f)
TL_FLOAT_(f64, double, )

TL_FN float tl_fast_exp2_f32(float x) { return exp2f(x); }
TL_FN float tl_fast_exp_f32(float x) { return expf(x); }
TL_FN float tl_fast_log2_f32(float x) { return log2f(x); }
TL_FN float tl_fast_log_f32(float x) { return logf(x); }
TL_FN float tl_fast_sin_f32(float x) { return sinf(x); }
TL_FN float tl_fast_cos_f32(float x) { return cosf(x); }
TL_FN float tl_fast_tanh_f32(float x) { return tanhf(x); }
TL_FN float tl_fast_rcp_f32(float x) { return 1.0f / x; }
TL_FN float tl_fast_rsqrt_f32(float x) { return 1.0f / __builtin_sqrtf(x); }

TL_FN tl_u32 tl_popcount_u32(tl_u32 x) { return (tl_u32)__builtin_popcount(x); }
TL_FN tl_u64 tl_popcount_u64(tl_u64 x) { return (tl_u64)__builtin_popcountll(x); }
TL_FN tl_u32 tl_clz_u32(tl_u32 x) { return x ? (tl_u32)__builtin_clz(x) : 32u; }
TL_FN tl_u64 tl_clz_u64(tl_u64 x) { return x ? (tl_u64)__builtin_clzll(x) : 64u; }
TL_FN tl_u64 tl_brev_u64(tl_u64 x) {
  x = (x >> 1 & 0x5555555555555555ull) | (x & 0x5555555555555555ull) << 1;
  x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
  x = (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
  return __builtin_bswap64(x);
}
TL_FN tl_u32 tl_brev_u32(tl_u32 x) { return (tl_u32)(tl_brev_u64(x) >> 32); }

// -- copies: one instrumented access each ----------------------------------------------------------------------

typedef tl_u32 tl_b64_ __attribute__((vector_size(8), may_alias));
typedef tl_u32 tl_b128_ __attribute__((vector_size(16), may_alias));
typedef tl_u8 tl_b8_ __attribute__((may_alias));
typedef tl_u16 tl_b16_ __attribute__((may_alias));
typedef tl_u32 tl_b32_ __attribute__((may_alias));
// Local arrays have their element's alignment only, so the type of the access promises 1 and the runtime looks.
#define TL_COPY_(N, type) \
  typedef type tl_any##N##_ __attribute__((aligned(1))); \
  TL_FN void tl_copy_##N(void* dst, const void* src) { \
    if (N > 1) { tlr_check_aligned(dst, N); tlr_check_aligned(src, N); } \
    *(tl_any##N##_*)dst = *(const tl_any##N##_*)src; \
  } \
  TL_FN void tl_zero_##N(void* dst) { \
    if (N > 1) tlr_check_aligned(dst, N); \
    *(tl_any##N##_*)dst = type{}; \
  }
TL_COPY_(1, tl_b8_) TL_COPY_(2, tl_b16_) TL_COPY_(4, tl_b32_) TL_COPY_(8, tl_b64_) TL_COPY_(16, tl_b128_)

// -- barriers and the warp: every place of the text has a number, so that threads at different ones are told apart ---

TL_FN int tl_thread_() { return (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }
TL_FN int tl_lane() { return tl_thread_() & 31; }
TL_FN int tl_warp() { return tl_thread_() >> 5; }
#define tl_sync() tlr_sync(__COUNTER__)
#define tl_sync_named(id, count) tlr_sync_named(__COUNTER__, id, count)
#define tl_sync_count(p) tlr_sync_vote(__COUNTER__, 0, (p) != 0)
#define tl_sync_and(p) tlr_sync_vote(__COUNTER__, 1, (p) != 0)
#define tl_sync_or(p) tlr_sync_vote(__COUNTER__, 2, (p) != 0)
TL_FN void tl_syncwarp(tl_u32 mask) { tlr_syncwarp(mask); }
TL_FN tl_u32 tl_ballot(tl_u32 mask, int p) { return (tl_u32)tlr_vote(0, mask, p != 0); }
TL_FN int tl_any(tl_u32 mask, int p) { return tlr_vote(0, mask, p != 0) != 0; }
TL_FN int tl_all(tl_u32 mask, int p) { return tlr_vote(1, mask, p != 0) != 0; }
TL_FN tl_u32 tl_activemask() { return (tl_u32)tlr_vote(4, 0, 0); }
TL_FN tl_u32 tl_match_any_u32(tl_u32 mask, tl_u32 v) { return (tl_u32)tlr_vote(2, mask, v); }
TL_FN tl_u32 tl_match_any_u64(tl_u32 mask, tl_u64 v) { return (tl_u32)tlr_vote(2, mask, v); }
TL_FN tl_u32 tl_match_all_u32(tl_u32 mask, tl_u32 v) { return (tl_u32)tlr_vote(3, mask, v); }
TL_FN tl_u32 tl_match_all_u64(tl_u32 mask, tl_u64 v) { return (tl_u32)tlr_vote(3, mask, v); }

#define TL_SHUFFLE_(T, type, IN, OUT) \
  TL_FN type tl_shfl_##T(tl_u32 mask, type v, int lane, int w) { return (type)OUT(tlr_shuffle(0, mask, IN(v), lane, w)); } \
  TL_FN type tl_shfl_up_##T(tl_u32 mask, type v, int delta, int w) { return (type)OUT(tlr_shuffle(1, mask, IN(v), delta, w)); } \
  TL_FN type tl_shfl_down_##T(tl_u32 mask, type v, int delta, int w) { return (type)OUT(tlr_shuffle(2, mask, IN(v), delta, w)); } \
  TL_FN type tl_shfl_xor_##T(tl_u32 mask, type v, int lanes, int w) { return (type)OUT(tlr_shuffle(3, mask, IN(v), lanes, w)); }
TL_SHUFFLE_(i32, tl_i32, (tl_u64), ) TL_SHUFFLE_(u32, tl_u32, (tl_u64), )
TL_SHUFFLE_(i64, tl_i64, (tl_u64), ) TL_SHUFFLE_(u64, tl_u64, (tl_u64), )
TL_FN float tl_f32_word_(tl_u64 u) { return tl_f32_bits((tl_u32)u); }
TL_SHUFFLE_(f32, float, tl_bits_f32, tl_f32_word_) TL_SHUFFLE_(f64, double, tl_bits_f64, tl_f64_bits)

// -- fences and atomics --------------------------------------------------------------------------------------

TL_FN void tl_fence_block() {}
TL_FN void tl_fence() {}
enum { TL_ADD_, TL_MIN_, TL_MAX_, TL_AND_, TL_OR_, TL_XOR_, TL_EXCH_, TL_CAS_, TL_LOAD_, TL_STORE_ };
enum { TL_i8_, TL_u8_, TL_i16_, TL_u16_, TL_i32_, TL_u32_, TL_i64_, TL_u64_, TL_f32_, TL_f64_, TL_f16_, TL_bf16_ };
#define TL_RMW_(op, OP, T, type, IN, OUT) \
  TL_FN type tl_atomic_##op##_##T(type* p, type v, int order) { \
    return (type)OUT(tlr_atomic(TL_##OP##_, TL_##T##_, p, (tl_u64)IN(v), 0, order)); \
  }
#define TL_MEMORY_(T, type, IN, OUT) \
  TL_RMW_(exch, EXCH, T, type, IN, OUT) TL_RMW_(add, ADD, T, type, IN, OUT) \
  TL_RMW_(max, MAX, T, type, IN, OUT) TL_RMW_(min, MIN, T, type, IN, OUT) \
  TL_FN type tl_atomic_cas_##T(type* p, type expected, type v, int order) { \
    return (type)OUT(tlr_atomic(TL_CAS_, TL_##T##_, p, (tl_u64)IN(v), (tl_u64)IN(expected), order)); \
  } \
  TL_FN type tl_atomic_load_##T(const type* p, int order) { \
    return (type)OUT(tlr_atomic(TL_LOAD_, TL_##T##_, (void*)p, 0, 0, order)); \
  } \
  TL_FN void tl_atomic_store_##T(type* p, type v, int order) { \
    tlr_atomic(TL_STORE_, TL_##T##_, p, (tl_u64)IN(v), 0, order); \
  }
#define TL_ATOMIC_(T, type) \
  TL_MEMORY_(T, type, (tl_u64), ) TL_RMW_(and, AND, T, type, (tl_u64), ) TL_RMW_(or, OR, T, type, (tl_u64), ) \
  TL_RMW_(xor, XOR, T, type, (tl_u64), )
TL_ATOMIC_(i8, tl_i8) TL_ATOMIC_(u8, tl_u8) TL_ATOMIC_(i16, tl_i16) TL_ATOMIC_(u16, tl_u16)
TL_ATOMIC_(i32, tl_i32) TL_ATOMIC_(u32, tl_u32) TL_ATOMIC_(i64, tl_i64) TL_ATOMIC_(u64, tl_u64)
TL_MEMORY_(f32, float, tl_bits_f32, tl_f32_word_) TL_MEMORY_(f64, double, tl_bits_f64, tl_f64_bits)
TL_MEMORY_(f16, tl_f16, (tl_u64), ) TL_MEMORY_(bf16, tl_bf16, (tl_u64), )

TL_FN void tl_merge_nibble(tl_u8* p, tl_i64 i, int v) { tlr_set_nibble(p, i, v); }
TL_FN int tl_nibble_beside(const tl_u8* p, tl_i64 i) {
  return tl_atomic_load_u8(p + i / 2, TL_RELAXED) >> 4 * (int)(i & 1) & 15;
}
TL_FN void tl_spin() { tlr_spin(); }
#define tl_sync_grid(state) \
  do { \
    tl_sync(); \
    if (tl_thread_() == 0) { \
      tl_u32 blocks_ = gridDim.x * gridDim.y * gridDim.z; \
      tl_u32 goal_ = (tl_atomic_add_u32(state, 1u, TL_ACQ_REL) / blocks_ + 1u) * blocks_; \
      while ((int)(tl_atomic_load_u32(state, TL_ACQUIRE) - goal_) < 0) tl_spin(); \
    } \
    tl_sync(); \
  } while (0)

// -- asynchronous copies, matrix instructions, mbarriers -----------------------------------------------------

#define TL_ASYNC_(N) \
  TL_FN void tl_cp_async_##N(void* dst, const void* src) { tlr_cp_async(dst, src, N, N); } \
  TL_FN void tl_cp_async_##N##_zfill(void* dst, const void* src, int bytes) { tlr_cp_async(dst, src, N, bytes); }
TL_ASYNC_(4) TL_ASYNC_(8) TL_ASYNC_(16)
TL_FN void tl_cp_async_commit() { tlr_cp_async_commit(); }
TL_FN void tl_cp_async_wait(int n) { tlr_cp_async_wait(n); }

#define TL_LDMATRIX_(N) \
  TL_FN void tl_ldmatrix_x##N(tl_u32* r, const void* row) { tlr_ldmatrix(r, row, N, 0); } \
  TL_FN void tl_ldmatrix_x##N##_trans(tl_u32* r, const void* row) { tlr_ldmatrix(r, row, N, 1); }
TL_LDMATRIX_(1) TL_LDMATRIX_(2) TL_LDMATRIX_(4)

#define TL_MMA_(KIND, NAME, D, AB) \
  TL_FN void NAME(D* d, const AB* a, const AB* b) { tlr_mma(KIND, d, a, b); }
TL_MMA_(0, tl_mma_m16n8k16_f32_f16, float, tl_u32)
TL_MMA_(1, tl_mma_m16n8k16_f32_bf16, float, tl_u32)
TL_MMA_(2, tl_mma_m16n8k16_f16_f16, tl_u32, tl_u32)
TL_MMA_(3, tl_mma_m16n8k8_f32_tf32, float, tl_u32)
TL_MMA_(4, tl_mma_m16n8k32_i32_s8_s8, tl_i32, tl_u32)
TL_MMA_(5, tl_mma_m16n8k32_i32_s8_u8, tl_i32, tl_u32)
TL_MMA_(6, tl_mma_m16n8k32_i32_u8_s8, tl_i32, tl_u32)
TL_MMA_(7, tl_mma_m16n8k32_i32_u8_u8, tl_i32, tl_u32)
TL_MMA_(8, tl_mma_m16n8k32_f32_e4m3_e4m3, float, tl_u32)
TL_MMA_(9, tl_mma_m16n8k32_f32_e4m3_e5m2, float, tl_u32)
TL_MMA_(10, tl_mma_m16n8k32_f32_e5m2_e4m3, float, tl_u32)
TL_MMA_(11, tl_mma_m16n8k32_f32_e5m2_e5m2, float, tl_u32)
TL_MMA_(12, tl_mma_m8n8k4_f64, double, double)

TL_FN void tl_mbar_init(tl_u64* b, tl_u32 count) { tlr_mbar_init(b, count); }
TL_FN void tl_mbar_arrive(tl_u64* b) { tlr_mbar_arrive(b); }
TL_FN void tl_mbar_wait(tl_u64* b, tl_u32 parity) { tlr_mbar_wait(b, parity); }
TL_FN void tl_report(tl_u64* ring, int kind, int site, int count, const tl_u64* words) {
  tlr_report(ring, kind, site, count, words);
}

// -- the entry: a kernel called with its arguments as 64-bit words (addresses, or bits of their own width) ---------

template <unsigned... I> struct tl_sequence_ {};
template <unsigned N, unsigned... I> struct tl_count_ : tl_count_<N - 1, N - 1, I...> {};
template <unsigned... I> struct tl_count_<0, I...> { typedef tl_sequence_<I...> type; };
template <class A> TL_FN A tl_argument_(tl_u64 word) { A a; __builtin_memcpy(&a, &word, sizeof(A)); return a; }
template <class... A, unsigned... I> TL_FN void tl_spread_(void (*f)(A...), const tl_u64* w, tl_sequence_<I...>) {
  f(tl_argument_<A>(w[I])...);
}
template <class... A> TL_FN void tl_call_(void (*f)(A...), const tl_u64* w) {
  tl_spread_(f, w, typename tl_count_<sizeof...(A)>::type());
}
// Not watched: the words are nobody's memory.
#define TL_ENTRY_(NAME) extern "C" __attribute__((no_sanitize("thread"))) void tl_entry_##NAME(const tl_u64* words) { tl_call_(NAME, words); }
