// What flash_explain and flash_config answer, as JSON. Called by api.cpp.
#pragma once
#include <cstdint>
#include <string>

#include "plan.h"
#include "problem.h"

namespace flash {

// How many pairs (i, j) of all batches and heads lie inside the visible intervals and listed blocks; an element mask is
// not counted. Where lengths or block lists lie on a CUDA device they are not read: whole sequences are assumed, and the
// share of blocks that the mask lists.
double visible_pairs(const Problem &problem);

// Reads lengths and block lists, so check_values must have passed. wanted: 0 for the forward.
std::string explain_json(const Problem &problem, const Plan &plan, uint32_t wanted);

std::string config_json();

}  // namespace flash
