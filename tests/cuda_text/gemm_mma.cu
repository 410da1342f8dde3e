//@ gemm_mma.py:4 | with T.Kernel(T.ceildiv(N, 64), T.ceildiv(M, 64), threads=128) as (bx, by):
// C = A B, bfloat16 to float32, on tensor cores: 64 x 64 tiles, K in steps of 32, three stages of cp.async, rows swizzled so
// that ldmatrix has no bank conflicts. N and K are multiples of 8; beyond M, N and K the copies fill in zeros.
extern "C" __global__ void __launch_bounds__(128) gemm_mma(const tl_bf16* __restrict__ A, const tl_bf16* __restrict__ B, float* C, int M, int N, int K) {
  tl_bf16* a_s = (tl_bf16*)tl_shared();
  tl_bf16* b_s = (tl_bf16*)(tl_shared() + 3 * 64 * 32 * 2);
  int t = (int)threadIdx.x, lane = tl_lane(), warp = tl_warp();
  int m0 = (int)blockIdx.y * 64, n0 = (int)blockIdx.x * 64, steps = (K + 31) / 32;
//@ gemm_mma.py:8 | T.clear(acc)
  float acc[2][4][4];
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 4; j++) {
      for (int e = 0; e < 4; e++) {
        acc[i][j][e] = 0.0f;
      }
    }
  }
  for (int step = 0; step < steps + 2; step++) {
    if (step >= 2) {
//@ gemm_mma.py:9 | for k in T.Pipelined(T.ceildiv(K, 32), num_stages=3):
      tl_cp_async_wait(1);  // the oldest stage has landed
      tl_sync();            // for all threads, and the stage before it is free
    }
    if (step < steps) {
      int stage = step % 3, k0 = step * 32;
//@ gemm_mma.py:10 | T.copy(A[by * 64, k * 32], A_s)
      for (int i = 0; i < 2; i++) {
        int e = i * 128 + t, r = e / 4, c = e % 4 * 8;
        int bytes = m0 + r < M && k0 + c < K ? 16 : 0;
        tl_cp_async_16_zfill(&a_s[stage * 2048 + r * 32 + ((c / 8 ^ r / 2 % 4) * 8)], bytes ? &A[(tl_i64)(m0 + r) * K + k0 + c] : A, bytes);
      }
//@ gemm_mma.py:11 | T.copy(B[k * 32, bx * 64], B_s)
      for (int i = 0; i < 2; i++) {
        int e = i * 128 + t, r = e / 8, c = e % 8 * 8;
        int bytes = k0 + r < K && n0 + c < N ? 16 : 0;
        tl_cp_async_16_zfill(&b_s[stage * 2048 + r * 64 + ((c / 8 ^ r % 8) * 8)], bytes ? &B[(tl_i64)(k0 + r) * N + n0 + c] : B, bytes);
      }
    }
    tl_cp_async_commit();
    if (step >= 2) {
      const tl_bf16* a_t = a_s + (step - 2) % 3 * 2048;
      const tl_bf16* b_t = b_s + (step - 2) % 3 * 2048;
//@ gemm_mma.py:12 | T.gemm(A_s, B_s, acc)
      for (int kk = 0; kk < 32; kk += 16) {
        tl_u32 a[2][4], b[2][4];
        for (int i = 0; i < 2; i++) {
          int r = warp / 2 * 32 + i * 16 + lane % 16, c = kk + lane / 16 * 8;
          tl_ldmatrix_x4(a[i], &a_t[r * 32 + ((c / 8 ^ r / 2 % 4) * 8)]);
        }
        for (int j = 0; j < 2; j++) {
          int r = kk + lane % 16, c = warp % 2 * 32 + j * 16 + lane / 16 * 8;
          tl_ldmatrix_x4_trans(b[j], &b_t[r * 64 + ((c / 8 ^ r % 8) * 8)]);
        }
        for (int i = 0; i < 2; i++) {
          for (int j = 0; j < 4; j++) {
            tl_mma_m16n8k16_f32_bf16(acc[i][j], a[i], &b[j / 2][j % 2 * 2]);
          }
        }
      }
    }
  }
//@ gemm_mma.py:13 | T.copy(acc, C[by * 64, bx * 64])
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 4; j++) {
      for (int e = 0; e < 4; e++) {
        int r = m0 + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8, c = n0 + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2;
        if (r < M && c < N) {
          C[(tl_i64)r * N + c] = acc[i][j][e];
        }
      }
    }
  }
}
