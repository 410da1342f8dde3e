// Types, conversions and integer arithmetic of generated kernels: the same text for the device and for the host.
// Conversions follow tiledsl/conversions.py bit for bit (a NaN stays some NaN).
#ifdef __CUDACC__
#define TL_FN static __device__ __forceinline__
#else
#define TL_FN static inline __attribute__((always_inline))
#endif

typedef unsigned char tl_bool;
typedef signed char tl_i8;
typedef short tl_i16;
typedef int tl_i32;
typedef long long tl_i64;
typedef unsigned char tl_u8;
typedef unsigned short tl_u16;
typedef unsigned int tl_u32;
typedef unsigned long long tl_u64;
typedef tl_u16 tl_f16;
typedef tl_u16 tl_bf16;
typedef tl_u8 tl_e4m3;
typedef tl_u8 tl_e5m2;
typedef tl_u8 tl_e8m0;
typedef tl_u8 tl_e2m1;

#define TL_FULL 0xffffffffu
enum { TL_RELAXED = 0, TL_ACQUIRE = 1, TL_RELEASE = 2, TL_ACQ_REL = 3 };

// -- bits ------------------------------------------------------------------------------------------------------

#ifdef __CUDACC__
TL_FN tl_u32 tl_bits_f32(float x) { return __float_as_uint(x); }
TL_FN float tl_f32_bits(tl_u32 u) { return __uint_as_float(u); }
TL_FN tl_u64 tl_bits_f64(double x) { return (tl_u64)__double_as_longlong(x); }
TL_FN double tl_f64_bits(tl_u64 u) { return __longlong_as_double((tl_i64)u); }
#else
TL_FN tl_u32 tl_bits_f32(float x) { tl_u32 u; __builtin_memcpy(&u, &x, 4); return u; }
TL_FN float tl_f32_bits(tl_u32 u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
TL_FN tl_u64 tl_bits_f64(double x) { tl_u64 u; __builtin_memcpy(&u, &x, 8); return u; }
TL_FN double tl_f64_bits(tl_u64 u) { double x; __builtin_memcpy(&x, &u, 8); return x; }
#endif

TL_FN tl_u32 tl_pack_b16(tl_u16 lo, tl_u16 hi) { return (tl_u32)lo | (tl_u32)hi << 16; }
TL_FN tl_u16 tl_lo_b16(tl_u32 u) { return (tl_u16)u; }
TL_FN tl_u16 tl_hi_b16(tl_u32 u) { return (tl_u16)(u >> 16); }
TL_FN tl_u32 tl_pack_b8(tl_u8 b0, tl_u8 b1, tl_u8 b2, tl_u8 b3) {
  return (tl_u32)b0 | (tl_u32)b1 << 8 | (tl_u32)b2 << 16 | (tl_u32)b3 << 24;
}
TL_FN int tl_nibble(const tl_u8* p, tl_i64 i) { return p[i / 2] >> 4 * (int)(i & 1) & 15; }
TL_FN void tl_set_nibble(tl_u8* p, tl_i64 i, int v) {
  int shift = 4 * (int)(i & 1);
  p[i / 2] = (tl_u8)((p[i / 2] & ~(15 << shift)) | (v & 15) << shift);
}
TL_FN tl_u8 tl_byte(tl_u32 u, int i) { return (tl_u8)(u >> (8 * i)); }

// -- widening: exact -----------------------------------------------------------------------------------------

TL_FN float tl_cvt_f32_bf16(tl_bf16 x) { return tl_f32_bits((tl_u32)x << 16); }
TL_FN float tl_cvt_f32_f16(tl_f16 x) {
#ifdef __CUDACC__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x));
  return f;
#else
  tl_u32 sign = (tl_u32)(x & 0x8000u) << 16, code = x & 0x7fffu;
  if (code < 0x400u) return tl_f32_bits(tl_bits_f32((float)code * 0x1p-24f) | sign);
  return tl_f32_bits(sign | (code << 13) + (code < 0x7c00u ? 112u << 23 : 224u << 23));
#endif
}
TL_FN float tl_cvt_f32_e5m2(tl_e5m2 x) { return tl_cvt_f32_f16((tl_f16)((tl_u32)x << 8)); }
TL_FN float tl_cvt_f32_e4m3(tl_e4m3 x) {
  tl_u32 sign = (tl_u32)(x & 0x80u) << 24, code = x & 0x7fu;
  if (code == 0x7fu) return tl_f32_bits(sign | 0x7fc00000u);
  if (code < 8u) return tl_f32_bits(tl_bits_f32((float)code * 0x1p-9f) | sign);
  return tl_f32_bits(sign | (code << 20) + (120u << 23));
}
TL_FN float tl_cvt_f32_e2m1(tl_e2m1 x) {
  tl_u32 sign = (tl_u32)(x & 8u) << 28, code = x & 7u;
  if (code < 2u) return tl_f32_bits(tl_bits_f32((float)code * 0.5f) | sign);
  return tl_f32_bits(sign | (code << 22) + (126u << 23));
}
TL_FN float tl_cvt_f32_e8m0(tl_e8m0 x) {
  return tl_f32_bits(x == 255u ? 0x7fc00000u : x == 0u ? 0x400000u : (tl_u32)x << 23);
}

// -- float to narrower floats: one rounding to nearest even ------------------------------------------------

// The magnitude |x| as a code of `mantissa` mantissa bits whose smallest normal number is 2^(1 - bias); at most `top`.
TL_FN tl_u32 tl_round_(tl_u32 magnitude, int mantissa, int bias, tl_u32 top) {
  tl_u32 code;
  if (magnitude < (tl_u32)(128 - bias) << 23) {  // subnormal: a sum whose last place is the target's spacing rounds for us
    tl_u32 magic = (tl_u32)(127 + 1 - bias - mantissa + 23) << 23;
    code = tl_bits_f32(tl_f32_bits(magnitude) + tl_f32_bits(magic)) - magic;
  } else {
    int drop = 23 - mantissa;
    tl_u32 rounded = magnitude + ((1u << (drop - 1)) - 1u) + ((magnitude >> drop) & 1u);
    code = (rounded >> drop) - ((tl_u32)(127 - bias) << mantissa);
  }
  return code < top ? code : top;
}

TL_FN tl_f16 tl_cvt_f16_f32(float x) {
#ifdef __CUDACC__
  tl_f16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
#else
  tl_u32 bits = tl_bits_f32(x), magnitude = bits & 0x7fffffffu;
  tl_u32 code = x != x ? 0x7e00u : tl_round_(magnitude, 10, 15, 0x7c00u);
  return (tl_f16)(code | (bits >> 16 & 0x8000u));
#endif
}
TL_FN tl_bf16 tl_cvt_bf16_f32(float x) {
  tl_u32 bits = tl_bits_f32(x);
  return (tl_bf16)(x != x ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
TL_FN tl_e4m3 tl_cvt_e4m3_f32(float x) {
  tl_u32 bits = tl_bits_f32(x), code = x != x ? 0x7fu : tl_round_(bits & 0x7fffffffu, 3, 7, 0x7eu);
  return (tl_e4m3)(code | (bits >> 24 & 0x80u));
}
TL_FN tl_e5m2 tl_cvt_e5m2_f32(float x) {
  tl_u32 bits = tl_bits_f32(x), code = x != x ? 0x7eu : tl_round_(bits & 0x7fffffffu, 2, 15, 0x7bu);
  return (tl_e5m2)(code | (bits >> 24 & 0x80u));
}
TL_FN tl_e2m1 tl_cvt_e2m1_f32(float x) {
  tl_u32 bits = tl_bits_f32(x);
  return (tl_e2m1)(x != x ? 7u : tl_round_(bits & 0x7fffffffu, 1, 1, 7u) | (bits >> 28 & 8u));
}
TL_FN tl_e8m0 tl_cvt_e8m0_f32(float x) {  // the next power of two that is not smaller
  if (x != x) return 255u;
  if (!(x > 0.0f)) return 0u;
  tl_u32 bits = tl_bits_f32(x), code = bits >> 23;
  code += code ? (bits & 0x7fffffu) != 0u : bits > 0x400000u;
  return (tl_e8m0)(code < 254u ? code : 254u);
}
TL_FN tl_u32 tl_cvt_tf32_f32(float x) {
  tl_u32 bits = tl_bits_f32(x);
  return x != x ? 0x7fffffffu : (bits & 0x7fffffffu) >= 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// -- double and 64-bit integers: rounded to odd first, so that the second rounding is the only one that counts --

TL_FN float tl_odd_f32_(double x) {
  float near = (float)x;
  double wide = (double)near;
  tl_u32 bits = tl_bits_f32(near);
  if (x != x) return near;
  bits -= (wide < 0 ? -wide : wide) > (x < 0 ? -x : x);
  return tl_f32_bits(bits | (wide != x));
}
TL_FN double tl_odd_u64_(tl_u64 x) {
  return x < (1ull << 53) ? (double)x : (double)(x >> 11 | ((x & 0x7ffu) != 0u)) * 2048.0;
}
TL_FN double tl_odd_i64_(tl_i64 x) { return x < 0 ? -tl_odd_u64_(0ull - (tl_u64)x) : tl_odd_u64_((tl_u64)x); }

#define TL_NARROW_(N) \
  TL_FN tl_##N tl_cvt_##N##_f64(double x) { return tl_cvt_##N##_f32(tl_odd_f32_(x)); } \
  TL_FN tl_##N tl_cvt_##N##_i64(tl_i64 x) { return tl_cvt_##N##_f64(tl_odd_i64_(x)); } \
  TL_FN tl_##N tl_cvt_##N##_u64(tl_u64 x) { return tl_cvt_##N##_f64(tl_odd_u64_(x)); }
TL_NARROW_(f16) TL_NARROW_(bf16) TL_NARROW_(e4m3) TL_NARROW_(e5m2) TL_NARROW_(e8m0) TL_NARROW_(e2m1)

// -- float to integer: truncate, saturate, NaN gives 0 -----------------------------------------------------

#define TL_TO_INT_(I, LOW, ABOVE, SMALLEST, LARGEST) \
  TL_FN tl_##I tl_cvt_##I##_f64(double x) { \
    return x != x ? (tl_##I)0 : x >= ABOVE ? (tl_##I)LARGEST : x < LOW ? (tl_##I)SMALLEST : (tl_##I)x; \
  } \
  TL_FN tl_##I tl_cvt_##I##_f32(float x) { \
    return x != x ? (tl_##I)0 : x >= (float)ABOVE ? (tl_##I)LARGEST : x < (float)LOW ? (tl_##I)SMALLEST : (tl_##I)x; \
  }
TL_TO_INT_(i8, -128.0, 128.0, -128, 127)
TL_TO_INT_(i16, -32768.0, 32768.0, -32768, 32767)
TL_TO_INT_(i32, -2147483648.0, 2147483648.0, (-2147483647 - 1), 2147483647)
TL_TO_INT_(i64, -9223372036854775808.0, 9223372036854775808.0, (-9223372036854775807ll - 1), 9223372036854775807ll)
TL_TO_INT_(u8, 0.0, 256.0, 0, 255)
TL_TO_INT_(u16, 0.0, 65536.0, 0, 65535)
TL_TO_INT_(u32, 0.0, 4294967296.0, 0, 4294967295u)
TL_TO_INT_(u64, 0.0, 18446744073709551616.0, 0, 18446744073709551615ull)

// -- integer arithmetic that wraps, and never traps ------------------------------------------------------------

#define TL_INT_(I, U, BITS) \
  TL_FN tl_##I tl_add_##I(tl_##I a, tl_##I b) { return (tl_##I)((tl_##U)a + (tl_##U)b); } \
  TL_FN tl_##I tl_sub_##I(tl_##I a, tl_##I b) { return (tl_##I)((tl_##U)a - (tl_##U)b); } \
  TL_FN tl_##I tl_mul_##I(tl_##I a, tl_##I b) { return (tl_##I)((tl_##U)a * (tl_##U)b); } \
  TL_FN tl_##I tl_neg_##I(tl_##I a) { return (tl_##I)(0 - (tl_##U)a); } \
  TL_FN tl_##I tl_max_##I(tl_##I a, tl_##I b) { return a > b ? a : b; } \
  TL_FN tl_##I tl_min_##I(tl_##I a, tl_##I b) { return a < b ? a : b; } \
  TL_FN tl_##I tl_shl_##I(tl_##I a, int n) { return n < 0 || n >= BITS ? (tl_##I)0 : (tl_##I)((tl_##U)a << n); }
TL_INT_(i32, u32, 32) TL_INT_(u32, u32, 32) TL_INT_(i64, u64, 64) TL_INT_(u64, u64, 64)

#define TL_UNSIGNED_(U, BITS) \
  TL_FN tl_##U tl_abs_##U(tl_##U a) { return a; } \
  TL_FN tl_##U tl_truncdiv_##U(tl_##U a, tl_##U b) { return b ? a / b : (tl_##U)0; } \
  TL_FN tl_##U tl_truncmod_##U(tl_##U a, tl_##U b) { return b ? a % b : (tl_##U)0; } \
  TL_FN tl_##U tl_floordiv_##U(tl_##U a, tl_##U b) { return tl_truncdiv_##U(a, b); } \
  TL_FN tl_##U tl_floormod_##U(tl_##U a, tl_##U b) { return tl_truncmod_##U(a, b); } \
  TL_FN tl_##U tl_shr_##U(tl_##U a, int n) { return n < 0 || n >= BITS ? (tl_##U)0 : a >> n; }
TL_UNSIGNED_(u32, 32) TL_UNSIGNED_(u64, 64)

#define TL_SIGNED_(I, BITS) \
  TL_FN tl_##I tl_abs_##I(tl_##I a) { return a < 0 ? tl_neg_##I(a) : a; } \
  TL_FN tl_##I tl_truncdiv_##I(tl_##I a, tl_##I b) { return b == 0 ? 0 : b == -1 ? tl_neg_##I(a) : a / b; } \
  TL_FN tl_##I tl_truncmod_##I(tl_##I a, tl_##I b) { return b == 0 || b == -1 ? 0 : a % b; } \
  TL_FN tl_##I tl_floordiv_##I(tl_##I a, tl_##I b) { \
    return tl_truncdiv_##I(a, b) - ((tl_truncmod_##I(a, b) != 0) & ((a < 0) != (b < 0))); \
  } \
  TL_FN tl_##I tl_floormod_##I(tl_##I a, tl_##I b) { \
    tl_##I rest = tl_truncmod_##I(a, b); \
    return rest != 0 && (a < 0) != (b < 0) ? rest + b : rest; \
  } \
  TL_FN tl_##I tl_shr_##I(tl_##I a, int n) { return a >> (n < 0 || n >= BITS ? BITS - 1 : n); }
TL_SIGNED_(i32, 32) TL_SIGNED_(i64, 64)
