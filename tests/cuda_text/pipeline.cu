//@ pipeline.py:4 | with T.Kernel(blocks, threads=128) as bx:
// Warp 0 brings tiles of 96 elements into a ring of two stages, warps 1 to 3 add each tile to what they hold; mbarriers say
// when a stage is full and when it is empty. At the end each warp reverses its 32 sums through shared memory.
extern "C" __global__ void __launch_bounds__(128) pipeline(const int* __restrict__ x, int* y, int tiles) {
  int* ring = (int*)tl_shared();
  int* turn = (int*)(tl_shared() + 768);
  tl_u64* full = (tl_u64*)(tl_shared() + 1152);
  tl_u64* empty = (tl_u64*)(tl_shared() + 1168);
  int lane = tl_lane(), warp = tl_warp();
//@ pipeline.py:7 | full = T.alloc_barrier([32, 32])
  if ((int)threadIdx.x == 0) {
    for (int s = 0; s < 2; s++) {
      tl_mbar_init(&full[s], 32);
      tl_mbar_init(&empty[s], 96);
    }
  }
  tl_sync();  // the barriers are ready
  int sum = 0;
  if (warp == 0) {
    for (int k = 0; k < tiles; k++) {
//@ pipeline.py:12 | T.barrier_wait(empty[k % 2], k // 2 % 2 ^ 1)
      tl_mbar_wait(&empty[k % 2], k / 2 % 2 ^ 1);
//@ pipeline.py:13 | T.copy(x[bx, k, 0], ring[k % 2, 0])
      for (int i = 0; i < 3; i++) {
        ring[k % 2 * 96 + i * 32 + lane] = x[((tl_i64)blockIdx.x * tiles + k) * 96 + i * 32 + lane];
      }
//@ pipeline.py:14 | T.barrier_arrive(full[k % 2])
      tl_mbar_arrive(&full[k % 2]);
    }
  } else {
    for (int k = 0; k < tiles; k++) {
//@ pipeline.py:17 | T.barrier_wait(full[k % 2], k // 2 % 2)
      tl_mbar_wait(&full[k % 2], k / 2 % 2);
//@ pipeline.py:18 | sum += ring[k % 2, tx - 32]
      sum = tl_add_i32(sum, ring[k % 2 * 96 + (warp - 1) * 32 + lane]);
//@ pipeline.py:19 | T.barrier_arrive(empty[k % 2])
      tl_mbar_arrive(&empty[k % 2]);
    }
//@ pipeline.py:21 | y[bx, tx - 32] = reversed over the warp
    turn[(warp - 1) * 32 + lane] = sum;
    tl_syncwarp(TL_FULL);
    y[(tl_i64)blockIdx.x * 96 + (warp - 1) * 32 + lane] = turn[(warp - 1) * 32 + 31 - lane];
  }
}
