//@ gemm_fma.py:4 | with T.Kernel(T.ceildiv(N, 64), T.ceildiv(M, 64), threads=128) as (bx, by):
// C = A B in float32: 64 x 64 tiles, K in steps of 16 through shared memory (A transposed, rows padded), 8 x 4 per thread.
extern "C" __global__ void __launch_bounds__(128) gemm_fma(const float* __restrict__ A, const float* __restrict__ B, float* C, int M, int N, int K) {
  float* a_s = (float*)tl_shared();
  float* b_s = (float*)(tl_shared() + 16 * 68 * 4);
  int t = (int)threadIdx.x, row = t / 16 * 8, col = t % 16 * 4;
  int m0 = (int)blockIdx.y * 64, n0 = (int)blockIdx.x * 64;
//@ gemm_fma.py:8 | T.clear(acc)
  float acc[8][4];
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 4; j++) {
      acc[i][j] = 0.0f;
    }
  }
//@ gemm_fma.py:9 | for k in T.Pipelined(T.ceildiv(K, 16)):
  for (int k0 = 0; k0 < K; k0 += 16) {
//@ gemm_fma.py:10 | T.copy(A[by * 64, k * 16], A_s)
    for (int i = 0; i < 8; i++) {
      int e = i * 128 + t, r = e / 16, c = e % 16;
      a_s[c * 68 + r] = m0 + r < M && k0 + c < K ? A[(tl_i64)(m0 + r) * K + k0 + c] : 0.0f;
    }
//@ gemm_fma.py:11 | T.copy(B[k * 16, bx * 64], B_s)
    for (int i = 0; i < 8; i++) {
      int e = i * 128 + t, r = e / 64, c = e % 64;
      b_s[r * 68 + c] = k0 + r < K && n0 + c < N ? B[(tl_i64)(k0 + r) * N + n0 + c] : 0.0f;
    }
    tl_sync();  // tiles are full
//@ gemm_fma.py:12 | T.gemm(A_s, B_s, acc)
    for (int k = 0; k < 16; k++) {
      float a[8], b[4];
      for (int i = 0; i < 8; i += 4) {
        tl_copy_16(&a[i], &a_s[k * 68 + row + i]);
      }
      tl_copy_16(b, &b_s[k * 68 + col]);
      for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 4; j++) {
          acc[i][j] = tl_fma_f32(a[i], b[j], acc[i][j]);
        }
      }
    }
    tl_sync();  // tiles are free
  }
//@ gemm_fma.py:13 | T.copy(acc, C[by * 64, bx * 64])
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 4; j++) {
      if (m0 + row + i < M && n0 + col + j < N) {
        C[(tl_i64)(m0 + row + i) * N + n0 + col + j] = acc[i][j];
      }
    }
  }
}
