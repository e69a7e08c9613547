// CUDA implementations of the operators in schema.cpp, in an object of their own that
// Python loads only where torch itself has CUDA. Under BITNAS_CUDA_MODEL the same code
// runs on the host model and takes the place of the CPU's operators (tests only).
#include <cstdlib>
#include <string>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/select.h"
#include "ops/floats.h"

namespace bitnas::ops {
namespace {

#ifdef BITNAS_CUDA_MODEL

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream = nullptr;
  int device = 0;
};

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "CUDA model: ", cudaGetErrorString(error)); }

#else

// Makes the tensor's device current; its stream is the caller's.
struct OnDevice {
  explicit OnDevice(const Tensor& x) : device(x.get_device_index()), guard(x.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
  }
  cudaStream_t stream = nullptr;
  int device;
  torch::stable::accelerator::DeviceGuard guard;
};

void check(cudaError_t error) { STD_CUDA_CHECK(error); }

#endif

void run_pack(PackArgs args, int64_t pixels, const Tensor& x) {
  const OnDevice on(x);
  check(cuda::pack(args, pixels, on.stream));
}

void run_join(const JoinArgs& args, const Tensor& shortcut, const Cuts* cuts, Word* packed) {
  const OnDevice on(shortcut);
  check(cuda::join(args, shortcut.size(0), on.stream));
  const int64_t pixels = shortcut.size(0) * args.out_height * args.out_width, channels = args.groups * args.channels;
  for (int64_t i = 0; cuts != nullptr && i < cuts->count; ++i)
    check(cuda::pack({args.out, FloatType::kFloat32, packed + i * pixels * words_for(channels), channels, 1, true, 0,
                      cuts->thresholds + i * channels, cuts->directions + i * channels},
                     pixels, on.stream));
}

Tensor pack(const Tensor& x, double threshold) {
  PackArgs args = check_pack("pack", x);
  args.threshold = static_cast<float>(threshold);
  Tensor out = empty_packed_like(x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  run_pack(args, x.size(0) * args.plane, x);
  return out;
}

Tensor unpack(const Tensor& packed, int64_t channels, bool unit) {
  check_unpack(packed, channels);
  const OnDevice on(packed);
  Tensor out = empty_unpacked(packed, channels);
  check(cuda::unpack(data<Word>(packed), static_cast<float*>(out.mutable_data_ptr()),
                     packed.numel() / words_for(channels), channels, unit ? 0.0f : -1.0f, on.stream));
  return out;
}

// The sizes of a prepared tensor say for which weight it was made, since its contents lie on the device. The last one
// tells channels apart that take the same number of words.
std::array<int64_t, 4> prepared_sizes(const Conv2dShape& s) {
  const int64_t taps = s.out_channels * s.taps(), tail = s.group_channels() % kWordBits;
  return {s.out_channels, s.kernel_h, s.kernel_w, (cuda::prepared_layout(s).bytes + taps - 1) / taps + tail};
}

Tensor make_prepared(const Conv2dShape& shape, const Tensor& weight, const OnDevice& on) {
  Tensor out = empty_contiguous<4>(prepared_sizes(shape), aoti_torch_dtype_uint8(), weight);
  check(cuda::prepare_weight(shape, data<Word>(weight), out.mutable_data_ptr(), on.stream));
  return out;
}

// Every kernel reads the same layout, whatever the geometry.
Tensor prepare_weight(const Tensor& weight, int64_t in_channels, int64_t groups, int64_t, int64_t, int64_t, int64_t,
                      int64_t) {
  const Conv2dShape shape = weight_shape("prepare_weight", weight, in_channels, groups);
  return make_prepared(shape, weight, OnDevice(weight));
}

bool is_prepared_for(const Conv2dShape& shape, const Tensor& prepared, const Tensor& x) {
  if (prepared.scalar_type() != ScalarType::Byte || prepared.dim() != 4 || !prepared.is_contiguous() ||
      prepared.get_device_index() != x.get_device_index() || prepared.is_cpu() != x.is_cpu())
    return false;
  const auto sizes = prepared_sizes(shape);
  for (int64_t i = 0; i < 4; ++i)
    if (prepared.size(i) != sizes[i]) return false;
  return reinterpret_cast<uintptr_t>(prepared.const_data_ptr()) % 16 == 0;
}

void run_conv2d(const Conv2dArgs& args, const Tensor& x, const Tensor& weight, const OptionalTensor& prepared) {
  const OnDevice on(x);
  const bool serves = prepared.has_value() && is_prepared_for(args.shape, *prepared, x);
  const Tensor weights = serves ? *prepared : make_prepared(args.shape, weight, on);
  cuda::Conv2dPlan plan;
  check(cuda::plan_conv2d(args, on.device, &plan));
  const auto bytes = [&](int64_t size) {
    return size > 0 ? std::optional(empty_contiguous<1>({size}, aoti_torch_dtype_uint8(), x)) : std::nullopt;
  };
  const OptionalTensor regrouped = bytes(plan.regrouped_bytes), partial = bytes(plan.partial_bytes);
  const auto pointer = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr() : nullptr; };
  check(cuda::conv2d(args, plan, weights.const_data_ptr(), pointer(regrouped), pointer(partial), on.stream));
}

Tensor max_pool2d_bits(const Tensor& x, const OptionalTensor& flip, int64_t kernel_h, int64_t kernel_w,
                       int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w) {
  MaxPool2dArgs args =
      check_max_pool2d("max_pool2d_bits", x, flip, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w);
  const OnDevice on(x);
  Tensor out = empty_pooled(args, x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  check(cuda::max_pool2d(args, x.size(0), on.stream));
  return out;
}

int current_capability() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

std::string cuda_kernels() {
  std::string names;
  const int capability = current_capability();
  for (int i = 0; i < cuda::kernel_count(); ++i)
    if (cuda::kernel_runs_on(i, capability)) names.append(names.empty() ? "" : ",").append(cuda::kernel(i).name);
  return names;
}

bool select_cuda_kernel(const std::string& name) { return cuda::force_kernel(name.c_str(), current_capability()); }

template <typename Library>
void implement(Library& m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("unpack", TORCH_BOX(&unpack));
  m.impl("prepare_weight", TORCH_BOX(&prepare_weight));
  m.impl("max_pool2d_bits", TORCH_BOX(&max_pool2d_bits));
  Dots<&run_conv2d, &run_pack>::implement(m);
  Floats<&run_join, &run_pack>::implement(m);
}

}  // namespace
}  // namespace bitnas::ops

#ifdef BITNAS_CUDA_MODEL
STABLE_TORCH_LIBRARY_IMPL(bitnas, CPU, m) { bitnas::ops::implement(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(bitnas, CUDA, m) { bitnas::ops::implement(m); }
#endif

STABLE_TORCH_LIBRARY_IMPL(bitnas, CompositeExplicitAutograd, m) {
  m.impl("cuda_kernels", TORCH_BOX(&bitnas::ops::cuda_kernels));
  m.impl("select_cuda_kernel", TORCH_BOX(&bitnas::ops::select_cuda_kernel));
}
