//@ block_sum.py:3 | with T.Kernel(T.ceildiv(n, 1024), threads=256) as bx:
// Each block of 256 threads sums 1024 elements: lanes by shuffles, warps through shared memory, blocks by an atomic.
extern "C" __global__ void __launch_bounds__(256) block_sum(const float* __restrict__ x, float* total, float* parts, int n) {
  float* partial = (float*)tl_shared();
  int lane = tl_lane(), warp = tl_warp();
//@ block_sum.py:5 | s = x[bx * 1024 + i]
  float s = 0.0f;
  for (int i = 0; i < 4; i++) {
    tl_i64 at = (tl_i64)blockIdx.x * 1024 + i * 256 + (int)threadIdx.x;
    if (at < n) {
      s = s + x[at];
    }
  }
//@ block_sum.py:6 | s = T.warp_reduce_sum(s)
  for (int d = 16; d > 0; d >>= 1) {
    s = s + tl_shfl_xor_f32(TL_FULL, s, d, 32);
  }
//@ block_sum.py:7 | partial[tx // 32] = s
  if (lane == 0) {
    partial[warp] = s;
  }
//@ block_sum.py:8 | T.sync_threads()
  tl_sync();
//@ block_sum.py:9 | t = partial[...]
  if (warp == 0) {
    float t = lane < 8 ? partial[lane] : 0.0f;
    for (int d = 4; d > 0; d >>= 1) {
      t = t + tl_shfl_xor_f32(TL_FULL, t, d, 32);
    }
    if (lane == 0) {
      partial[0] = t;
      tl_atomic_add_f32(total, t, TL_RELAXED);
    }
  }
//@ block_sum.py:10 | T.sync_threads()
  tl_sync();
//@ block_sum.py:11 | parts[bx, tx] = partial[0]
  parts[(tl_i64)blockIdx.x * 256 + (int)threadIdx.x] = partial[0];
}
