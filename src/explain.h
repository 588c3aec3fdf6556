// What flash_explain and flash_config answer, as JSON. Called by api.cpp.
#pragma once
#include <cstdint>
#include <string>

#include "plan.h"
#include "problem.h"

namespace flash {

// Reads lengths and block lists, so check_values must have passed. wanted: 0 for the forward.
std::string explain_json(const Problem &problem, const Plan &plan, uint32_t wanted);

std::string config_json();

}  // namespace flash
