// The one list of convolution kernels, and the one place that decides which of them a layer gets. Dispatch, tests and
// benches all read this list.
#pragma once

#include "kernels/cpu/kernel.h"

namespace bitnas::cpu {

int kernel_count();
const Kernel& kernel(int index);
// By this CPU, and (with a shape) for this layer.
bool kernel_supported(int index);
bool kernel_computes(int index, const Conv2dShape& shape);

// The kernel for a layer on a row of the ISA table. Of the shape, sizes of images are not looked at: `positions`, the
// output positions of one call, says what matters of them; 0 where nobody knows.
int choose_kernel(int isa, const Conv2dShape& shape, int64_t positions);

// From now on this kernel wherever the active ISA is its own and it computes the layer; "auto": the best again.
// False when this build lacks it or this CPU cannot run it.
bool select_kernel(const char* name);

// Taps whose staged activations lie side by side: a row of the window, where it is not dilated.
inline int64_t run_taps(const Conv2dShape& s) { return s.dilation_w == 1 ? s.kernel_w : 1; }

}  // namespace bitnas::cpu
