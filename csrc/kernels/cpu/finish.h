// The end of the float epilogue (epilogue.h) as a pass of its own: residual, slope,
// rounding to the output's type.
#pragma once

#include "kernels/epilogue.h"

namespace bitnas::cpu {

// y: float32 scale * dot + bias of all pixels, may be e.out itself. Pixels [begin, end).
void finish_float(const Epilogue& e, const float* y, int64_t channels, int64_t begin, int64_t end);

}  // namespace bitnas::cpu
