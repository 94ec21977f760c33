// The launchers of embedding_layer_norm; formulas and contract stand in embedding_layer_norm.cuh and
// fasttx/ops/embedding_layer_norm/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

constexpr int kMaxTypes = 2;  // rows of a table whose gradient backward sums itself

// A table of embeddings and the ids that choose its rows: row r of the result reads id r modulo period.
struct EmbeddingTable {
  In rows;  // (n_rows, n_cols), contiguous; nullptr: none
  Indices ids;
  int64_t period, n_rows;
};

struct EmbeddingLayerNormFwdParams {
  Out out;
  float* mean;  // (n_rows,)
  float* rstd;
  EmbeddingTable word, position, token_type;  // the last two may be absent
  In weight, bias;                            // likewise
  Dropout dropout;
  int64_t n_rows, n_cols;
  float eps;
};

struct EmbeddingLayerNormBwdParams {
  Out dz, dtoken_type, dweight, dbias;  // each may be absent
  float* partial;                       // workspace, (sums, programs, n_cols), where one of the last three is there
  In dout;
  EmbeddingTable word, position, token_type;
  In weight;
  const float* mean;
  const float* rstd;
  Dropout dropout;
  int64_t n_rows, n_cols, stride_dm;
  int64_t programs;  // blocks that share the rows, where there are sums
};

void embedding_layer_norm_fwd(const EmbeddingLayerNormFwdParams& params, Stream stream);
void embedding_layer_norm_bwd(const EmbeddingLayerNormBwdParams& params, Stream stream);

}  // namespace fasttx
