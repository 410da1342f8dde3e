//@ attention.py:5 | with T.Kernel(T.ceildiv(S, 64), heads, threads=128) as (bx, by):
// O = softmax(scale Q K^T) V, bfloat16, head size 64, causal on request; a block has 64 queries, a warp 16 of them; keys and
// values come in tiles of 64. Scores stay in registers and become the operand of the second product.
extern "C" __global__ void __launch_bounds__(128) attention(const tl_bf16* __restrict__ Q, const tl_bf16* __restrict__ K, const tl_bf16* __restrict__ V, float* O, int S, int causal, float scale) {
  tl_bf16* q_s = (tl_bf16*)tl_shared();
  tl_bf16* k_s = (tl_bf16*)(tl_shared() + 8192);
  tl_bf16* v_s = (tl_bf16*)(tl_shared() + 16384);
  int t = (int)threadIdx.x, lane = tl_lane(), warp = tl_warp(), q0 = (int)blockIdx.x * 64;
  tl_i64 base = (tl_i64)blockIdx.y * S * 64;
//@ attention.py:9 | T.copy(Q[by, bx * 64, 0], Q_s)
  for (int i = 0; i < 4; i++) {
    int e = i * 128 + t, r = e / 8, c = e % 8;
    int bytes = q0 + r < S ? 16 : 0;
    tl_cp_async_16_zfill(&q_s[r * 64 + (c ^ r % 8) * 8], bytes ? &Q[base + (q0 + r) * 64 + c * 8] : Q, bytes);
  }
  tl_cp_async_commit();
//@ attention.py:11 | T.fill(m, -T.infinity("float32"))
  float o[8][4], m[2], l[2];
  for (int j = 0; j < 8; j++) {
    for (int e = 0; e < 4; e++) {
      o[j][e] = 0.0f;
    }
  }
  m[0] = m[1] = -1e30f;
  l[0] = l[1] = 0.0f;
  int end = causal && q0 + 64 < S ? q0 + 64 : S;
//@ attention.py:14 | for k in T.Pipelined(...):
  for (int k0 = 0; k0 < end; k0 += 64) {
    tl_sync();  // the tiles of the step before are free
//@ attention.py:15 | T.copy(K[by, k * 64, 0], K_s)
    for (int i = 0; i < 4; i++) {
      int e = i * 128 + t, r = e / 8, c = e % 8;
      int bytes = k0 + r < S ? 16 : 0;
      tl_cp_async_16_zfill(&k_s[r * 64 + (c ^ r % 8) * 8], bytes ? &K[base + (k0 + r) * 64 + c * 8] : K, bytes);
      tl_cp_async_16_zfill(&v_s[r * 64 + (c ^ r % 8) * 8], bytes ? &V[base + (k0 + r) * 64 + c * 8] : V, bytes);
    }
    tl_cp_async_commit();
    tl_cp_async_wait(0);
    tl_sync();  // all tiles are full
//@ attention.py:17 | T.gemm(Q_s, K_s, scores, transpose_B=True)
    float s[8][4];
    for (int j = 0; j < 8; j++) {
      for (int e = 0; e < 4; e++) {
        s[j][e] = 0.0f;
      }
    }
    for (int kk = 0; kk < 4; kk++) {
      tl_u32 a[4], b[4];
      int ar = warp * 16 + lane % 16;
      tl_ldmatrix_x4(a, &q_s[ar * 64 + ((kk * 2 + lane / 16) ^ ar % 8) * 8]);
      for (int j = 0; j < 4; j++) {
        int br = j * 16 + lane % 8 + lane / 16 * 8;
        tl_ldmatrix_x4(b, &k_s[br * 64 + ((kk * 2 + lane / 8 % 2) ^ br % 8) * 8]);
        tl_mma_m16n8k16_f32_bf16(s[2 * j], a, b);
        tl_mma_m16n8k16_f32_bf16(s[2 * j + 1], a, b + 2);
      }
    }
//@ attention.py:19 | scores[i, j] = T.if_then_else(...)
    for (int j = 0; j < 8; j++) {
      for (int e = 0; e < 4; e++) {
        int r = q0 + warp * 16 + lane / 4 + e / 2 * 8, c = k0 + j * 8 + lane % 4 * 2 + e % 2;
        if (c >= S || (causal && c > r)) {
          s[j][e] = -1e30f;
        }
      }
    }
//@ attention.py:21 | T.reduce_max(scores, m, dim=1, clear=False)
    for (int h = 0; h < 2; h++) {
      float top = m[h], sum = 0.0f;
      for (int j = 0; j < 8; j++) {
        top = tl_max_f32(top, tl_max_f32(s[j][2 * h], s[j][2 * h + 1]));
      }
      top = tl_max_f32(top, tl_shfl_xor_f32(TL_FULL, top, 1, 32));
      top = tl_max_f32(top, tl_shfl_xor_f32(TL_FULL, top, 2, 32));
      float keep = tl_fast_exp2_f32((m[h] - top) * scale);
      m[h] = top;
      for (int j = 0; j < 8; j++) {
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          float p = tl_fast_exp2_f32((s[j][e] - top) * scale);
          s[j][e] = p;
          sum = sum + p;
          o[j][e] = o[j][e] * keep;
        }
      }
      l[h] = l[h] * keep + sum;
    }
//@ attention.py:26 | T.gemm(P, V_s, acc)
    for (int kk = 0; kk < 4; kk++) {
      tl_u32 a[4], b[4];
      for (int i = 0; i < 4; i++) {
        int j = 2 * kk + i / 2, e = i % 2 * 2;
        a[i] = tl_pack_b16(tl_cvt_bf16_f32(s[j][e]), tl_cvt_bf16_f32(s[j][e + 1]));
      }
      for (int j = 0; j < 4; j++) {
        int br = kk * 16 + lane % 16;
        tl_ldmatrix_x4_trans(b, &v_s[br * 64 + ((j * 2 + lane / 16) ^ br % 8) * 8]);
        tl_mma_m16n8k16_f32_bf16(o[2 * j], a, b);
        tl_mma_m16n8k16_f32_bf16(o[2 * j + 1], a, b + 2);
      }
    }
  }
//@ attention.py:29 | T.copy(acc, O[by, bx * 64, 0])
  for (int h = 0; h < 2; h++) {
    float sum = l[h];
    sum = sum + tl_shfl_xor_f32(TL_FULL, sum, 1, 32);
    sum = sum + tl_shfl_xor_f32(TL_FULL, sum, 2, 32);
    int r = q0 + warp * 16 + lane / 4 + h * 8;
    if (r < S) {
      for (int j = 0; j < 8; j++) {
        float pair[2];
        pair[0] = o[j][2 * h] / sum;
        pair[1] = o[j][2 * h + 1] / sum;
        tl_copy_8(&O[base + r * 64 + j * 8 + lane % 4 * 2], pair);
      }
    }
  }
}
