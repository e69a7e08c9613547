// CUDA implementations of the operators in schema.cpp, in an object of their own that
// Python loads only where torch itself has CUDA.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "ops/checks.h"

namespace bitnas::ops {
namespace {

cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor run_pack(const Tensor& x, PackArgs args) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = empty_packed_like(x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  STD_CUDA_CHECK(cuda::pack(args, x.size(0) * args.plane, current_stream(x)));
  return out;
}

Tensor pack(const Tensor& x, double threshold) {
  PackArgs args = check_pack("pack", x);
  args.threshold = static_cast<float>(threshold);
  return run_pack(x, args);
}

Tensor pack_channels(const Tensor& x, const Tensor& threshold, const Tensor& direction) {
  PackArgs args = check_pack("pack_channels", x);
  check_vector("pack_channels", "threshold", threshold, ScalarType::Float, "float32", args.channels, x);
  check_vector("pack_channels", "direction", direction, ScalarType::Float, "float32", args.channels, x);
  args.thresholds = static_cast<const float*>(threshold.const_data_ptr());
  args.directions = static_cast<const float*>(direction.const_data_ptr());
  return run_pack(x, args);
}

Tensor linear_int32(const Tensor& x, const Tensor& weight, const std::optional<Tensor>&, int64_t in_features,
                    bool unit) {
  const Conv2dShape s = check_linear("linear_int32", x, weight, in_features, unit);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = empty_contiguous<2>({x.size(0), s.out_channels}, aoti_torch_dtype_int32(), x);
  const cuda::GemmArgs args{static_cast<const Word*>(x.const_data_ptr()),
                            static_cast<const Word*>(weight.const_data_ptr()),
                            static_cast<int32_t*>(out.mutable_data_ptr()),
                            x.size(0),
                            s.out_channels,
                            x.size(1),
                            in_features,
                            s.encoding};
  STD_CUDA_CHECK(cuda::gemm(args, current_stream(x)));
  return out;
}

}  // namespace
}  // namespace bitnas::ops

STABLE_TORCH_LIBRARY_IMPL(bitnas, CUDA, m) {
  using namespace bitnas::ops;
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("pack_channels", TORCH_BOX(&pack_channels));
  m.impl("linear_int32", TORCH_BOX(&linear_int32));
}
