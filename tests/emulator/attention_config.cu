// How much work a block of attention's forward on 9.0 takes at a time, for tests.
#include "attention/attention_config.h"
#include "gemm.cuh"

FTX_EXPORT int64_t run_fwd_sm90_tiles(int head_dim, int masks, int64_t heads, int max_seqlen_q, int max_seqlen_k,
                                      int multiprocessors) {
  return fasttx::fwd_sm90_tiles(head_dim, masks != 0, heads, max_seqlen_q, max_seqlen_k, multiprocessors);
}
