// From a checked problem to what the CUDA kernels are told: plain arithmetic shared by the planner and the launches.
#pragma once
#include "../cuda/configs.h"
#include "../cuda/params.h"
#include "plan.h"
#include "problem.h"

namespace flash {

Rows cuda_rows(const RowsView &view, DType dtype, int64_t columns);

Attention cuda_attention(const Problem &problem);

// Whether the kernels with all rules of a score are needed.
bool has_score_options(const Problem &problem);

// The kernels of one call: wanted is 0 for the forward, else FLASH_DQ | .... `dbias` and `most_partial` say how the
// gradient of a bias is cut: see cuda_bias_pieces. takes_dout: whether do can be copied by boxes; what the workspace
// holds is the same either way.
KernelLaunches cuda_launches(const Problem &problem, uint32_t wanted, const CudaDevice &device, const ScoresView &dbias,
                             int64_t most_partial, bool takes_dout = true);
// What one of them goes over.
int64_t cuda_dq_pieces(const Problem &problem);
Tiles cuda_query_tiles(const Problem &problem, int tile_rows);
Tiles cuda_key_tiles(const Problem &problem, int tile_rows);

// A kernel that goes over `tasks` blocks' worth of single queries or elements.
KernelLaunch plain_launch(Operation operation, int64_t tasks, int shared_bytes);
// Hopper's forward: query heads that share the rows of a tile, as a power of 2; groups of them whose keys share the L2
// cache; its tiles; keys that are copied as one box. Of its backward, queries.
int cuda_log2_heads(const Problem &problem, int tile_rows);
int cuda_heads_together(const Problem &problem, int log2_heads);
Tiles cuda_tiles_of_heads(const Problem &problem, int tile_rows);
int cuda_box_keys(const Problem &problem, bool has_options, int head_dim);
int cuda_box_queries(const Problem &problem, bool has_options, int head_dim);

// Tiles of queries (keys) of `heads` heads; none crosses a line of the block mask, whose blocks have `block` of them.
Tiles cuda_tiles(int64_t B, int64_t heads, int64_t length, int tile_rows, int64_t block);

// How dbias, or its stand-in the bias, is cut into pieces, with as many splits as `most_partial` floats have room for.
BiasPieces cuda_bias_pieces(const Problem &problem, const ScoresView &dbias, int64_t most_partial);
// Floats of the partial sums; 0 if nothing is split.
int64_t bias_partial_count(const BiasPieces &pieces, const ScoresView &dbias);

}  // namespace flash
