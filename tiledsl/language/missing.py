"""Names of the language that this version does not have yet: they say so when used."""

from __future__ import annotations

from typing import Any, NoReturn

from tiledsl.language.operation import not_yet

__all__ = ["MISSING", "Missing"]

MISSING = frozenset(
    """
    ClusterKernel Fragment FragmentBuffer Layout LocalBuffer Persistent PersistentTileScheduler PrimExpr SharedBuffer
    __cos __exp __exp10 __exp2 __log __log10 __log2 __pow __sin __tan abs2 add2 align_up all_of alloc_barrier
    alloc_cluster_barrier alloc_descriptor alloc_global alloc_reducer alloc_tmem any_of async_copy attr
    barrier_arrive barrier_wait block_rank_in_cluster c2d_im2col call_extern call_intrin cluster_sync comm_reducer
    copysign cos cosh determine_fp8_type erf evaluate extract_lane finalize_reducer fma2 fmod gemm_sp gemm_v2 handle
    ieee_add ieee_div ieee_fdiv ieee_fmaf ieee_frcp ieee_frsqrt ieee_fsqrt ieee_mul ieee_sub im2col inline ldg128
    ldg256 ldg32 ldg64 log10 log1p loop_break make_tensor max2 mbarrier_arrive mbarrier_expect_tx
    mbarrier_wait_parity meta_class min2 mul2 pdl_sync pdl_trigger popcount pow pow_of_int ptr ptx_arrive_barrier
    ptx_commit_group ptx_wait_group reducer_init reducer_update rng_init rng_rand rng_rand_float sin sinh stg128
    stg256 stg32 stg64 sub2 tan tanh tma_copy transpose tvm_thread_allreduce vectorized_cast wait_wgmma
    warpgroup_arrive warpgroup_commit_batch warpgroup_fence_operand warpgroup_wait
    """.split()
)

_HELP = {
    "tanh": "for now write it with T.exp: 1 - 2 / (T.exp(2 * x) + 1)",
    "pow": "for small powers multiply: x * x",
}


class Missing:
    """Stands for one such name; any use of it is a located error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _use(self, *args: Any, **kw: Any) -> NoReturn:
        raise not_yet(f"T.{self._name}", _HELP.get(self._name))

    __call__ = __getitem__ = __getattr__ = _use

    def __repr__(self) -> str:
        return f"<T.{self._name}, not supported yet>"
