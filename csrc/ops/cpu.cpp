// CPU implementations of the operators in schema.cpp: checks, allocation, and the
// split of the work over torch's own thread pool.
#include <atomic>
#include <string>
#include <vector>

#include "kernels/cpu/conv2d.h"
#include "kernels/cpu/float_conv2d.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/select.h"
#include "ops/floats.h"

namespace bitnas::ops {
namespace {

// Work below this many elements stays on the calling thread.
constexpr int64_t kPackGrain = int64_t{1} << 15;

// Chunks [begin, end) of `count` items on torch's threads; one chunk runs right here.
template <typename F>
void split(int64_t count, int64_t grain, const F& run) {
  if (count <= grain) {
    if (count > 0) run(0, count);
  } else {
    torch::stable::parallel_for(0, count, grain, run);
  }
}

void run_pack(PackArgs args, int64_t pixels, const Tensor&) {
  const PackFn kernel = cpu::isa(cpu::active_isa()).pack;
  split(pixels, kPackGrain / args.channels + 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
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
  Tensor out = empty_unpacked(packed, channels);
  const int64_t words = words_for(channels);
  const Word* in = data<Word>(packed);
  auto* values = static_cast<float*>(out.mutable_data_ptr());
  const float zero = unit ? 0.0f : -1.0f;
  split(packed.numel() / words, kPackGrain / channels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t c = 0; c < channels; ++c)
        values[p * channels + c] = (in[p * words + c / kWordBits] >> (c % kWordBits)) & 1 ? 1.0f : zero;
  });
  return out;
}

Tensor prepare_weight(const Tensor& weight, int64_t in_channels, int64_t groups, int64_t stride_h, int64_t stride_w,
                      int64_t dilation_h, int64_t dilation_w, int64_t positions) {
  Conv2dShape shape = weight_shape("prepare_weight", weight, in_channels, groups);
  STD_TORCH_CHECK(stride_h > 0 && stride_w > 0 && dilation_h > 0 && dilation_w > 0 && positions >= 0,
                  "prepare_weight: stride and dilation must be positive and positions not negative, got stride ",
                  stride_h, ", ", stride_w, ", dilation ", dilation_h, ", ", dilation_w, ", positions ", positions);
  shape.stride_h = stride_h, shape.stride_w = stride_w;
  shape.dilation_h = dilation_h, shape.dilation_w = dilation_w;
  const int kernel = cpu::choose_kernel(cpu::active_isa(), shape, positions);
  Tensor out = empty_contiguous<1>({cpu::Prepared::bytes(kernel, shape)}, aoti_torch_dtype_uint8(), weight);
  cpu::Prepared::prepare(kernel, shape, data<Word>(weight), static_cast<uint8_t*>(out.mutable_data_ptr()));
  return out;
}

// On a GPU it is chosen anew in each call.
std::string prepared_kernel(const Tensor& prepared) {
  if (prepared.scalar_type() != ScalarType::Byte || !prepared.is_contiguous() || !prepared.is_cpu()) return "";
  return cpu::Prepared::kernel_name(data<uint8_t>(prepared), prepared.numel());
}

int64_t output_bytes(const Conv2dArgs& args) {
  const Conv2dShape& s = args.shape;
  const int64_t pixels = s.images * s.out_height * s.out_width;
  if (args.epilogue.kind == EpilogueKind::kBits) return pixels * words_for(s.out_channels) * 8;
  const bool wide = args.epilogue.kind == EpilogueKind::kInt32 || args.epilogue.type == FloatType::kFloat32;
  return pixels * s.out_channels * (wide ? 4 : 2);
}

// Bytes that begin at a multiple of 64, kept between calls of one thread.
uint8_t* aligned_scratch(int64_t bytes) {
  static thread_local std::vector<uint8_t> scratch;
  if (static_cast<int64_t>(scratch.size()) < bytes + 63) scratch.resize(bytes + 63);
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  return scratch.data() + (64 - address % 64) % 64;
}

void run_conv2d(const Conv2dArgs& args, const Tensor&, const Tensor& weight, const OptionalTensor& prepared) {
  cpu::Prepared weights;
  if (prepared.has_value() && prepared->scalar_type() == ScalarType::Byte && prepared->is_contiguous() &&
      prepared->is_cpu())
    weights = cpu::Prepared::view(data<uint8_t>(*prepared), prepared->numel(), args.shape);
  if (!weights) {
    const Conv2dShape& s = args.shape;
    const int kernel = cpu::choose_kernel(cpu::active_isa(), s, s.images * s.out_height * s.out_width);
    const int64_t bytes = cpu::Prepared::bytes(kernel, s);
    uint8_t* made = aligned_scratch(bytes);
    cpu::Prepared::prepare(kernel, s, data<Word>(weight), made);
    weights = cpu::Prepared::view(made, bytes, s);
  }
  cpu::advise_huge_pages(args.epilogue.out, output_bytes(args));
  const cpu::Conv2dPlan plan(args, weights, torch::stable::get_num_threads());
  split(plan.tasks(), 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<uint8_t> scratch;
    for (int64_t task = begin; task < end; ++task) plan.run(task, scratch);
  });
}

Tensor max_pool2d_bits(const Tensor& x, const OptionalTensor& flip, int64_t kernel_h, int64_t kernel_w,
                       int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w) {
  MaxPool2dArgs args =
      check_max_pool2d("max_pool2d_bits", x, flip, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w);
  Tensor out = empty_pooled(args, x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  const int64_t row_words = args.out_width * args.words * kernel_h * kernel_w + 1;
  split(x.size(0) * args.out_height, kPackGrain / row_words + 1,
        [&](int64_t begin, int64_t end) { cpu::max_pool2d(args, begin, end); });
  return out;
}

// Each chunk is packed while it is in the cache.
void run_join(const JoinArgs& args, const Tensor& shortcut, const Cuts* cuts, Word* packed) {
  const int64_t pixels = shortcut.size(0) * args.out_height * args.out_width, channels = args.groups * args.channels;
  const PackFn kernel = cpu::isa(cpu::active_isa()).pack;
  split(pixels, kPackGrain / channels + 1, [&](int64_t begin, int64_t end) {
    cpu::join(args, begin, end);
    for (int64_t i = 0; cuts != nullptr && i < cuts->count; ++i) {
      Word* out = packed + i * pixels * words_for(channels);
      kernel({args.out, FloatType::kFloat32, out, channels, 1, true, 0, cuts->thresholds + i * channels,
              cuts->directions + i * channels},
             begin, end);
    }
  });
}

void run_float_conv2d(FloatConv2dArgs& args) {
  if (args.images * args.out_height * args.out_width == 0) return;
  const int64_t tasks = cpu::float_conv2d_tasks(args, torch::stable::get_num_threads());
  const int64_t bytes = cpu::float_conv2d_scratch_bytes(args);
  split(tasks, 1, [&](int64_t begin, int64_t end) {
    uint8_t* scratch = aligned_scratch(bytes);
    for (int64_t task = begin; task < end; ++task) cpu::float_conv2d(args, task, tasks, scratch);
  });
}

Tensor empty_floats(FloatConv2dArgs& a, const Tensor& x) {
  const int64_t n = a.out_channels, h = a.out_height, w = a.out_width;
  Tensor out = empty<4>({a.images, n, h, w}, {h * w * n, 1, w * n, n}, aoti_torch_dtype_float32(), x);
  a.out = static_cast<float*>(out.mutable_data_ptr());
  cpu::advise_huge_pages(a.out, a.images * n * h * w * 4);
  return out;
}

#define FLOAT_CONV2D_PARAMS                                                                                            \
  int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, bool relu, int64_t pool_h, int64_t pool_w, \
      int64_t pool_stride_h, int64_t pool_stride_w, int64_t pool_padding_h, int64_t pool_padding_w,                    \
      const OptionalTensor &scale, const OptionalTensor &slope
#define FLOAT_CONV2D_ARGS(op)                                                                               \
  check_float_conv2d(op, x, weight, {bias, scale, slope}, {stride_h, stride_w, padding_h, padding_w}, relu, \
                     {pool_h, pool_w, pool_stride_h, pool_stride_w, pool_padding_h, pool_padding_w})

Tensor float_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, FLOAT_CONV2D_PARAMS) {
  FloatConv2dArgs args = FLOAT_CONV2D_ARGS("float_conv2d");
  Tensor out = empty_floats(args, x);
  run_float_conv2d(args);
  return out;
}

std::tuple<Tensor, Tensor> float_conv2d_bits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                             const Tensor& cut, const Tensor& direction, bool floats,
                                             FLOAT_CONV2D_PARAMS) {
  FloatConv2dArgs args = FLOAT_CONV2D_ARGS("float_conv2d_bits");
  for (const auto& [name, t] : {std::pair{"cut", &cut}, std::pair{"direction", &direction}})
    check_vector("float_conv2d_bits", name, *t, ScalarType::Float, "float32", args.out_channels, x);
  args.cut = data<float>(cut), args.direction = data<float>(direction);
  Tensor out = floats ? empty_floats(args, x) : empty_contiguous<1>({0}, aoti_torch_dtype_float32(), x);
  Tensor packed = empty_contiguous<4>({args.images, args.out_height, args.out_width, words_for(args.out_channels)},
                                      aoti_torch_dtype_int64(), x);
  args.packed = static_cast<Word*>(packed.mutable_data_ptr());
  run_float_conv2d(args);
  return {std::move(out), std::move(packed)};
}

#undef FLOAT_CONV2D_PARAMS
#undef FLOAT_CONV2D_ARGS

std::string cpu_isas() {
  std::string names;
  for (int i = 0; i < cpu::isa_count(); ++i)
    if (cpu::isa_supported(i)) names.append(names.empty() ? "" : ",").append(cpu::isa(i).name);
  return names;
}

std::string cpu_isa() { return cpu::isa(cpu::active_isa()).name; }

bool select_cpu_isa(const std::string& name) { return cpu::select_isa(name.c_str()); }

// Of every instruction set this CPU runs.
std::string cpu_kernels() {
  std::string names;
  for (int i = 0; i < cpu::kernel_count(); ++i)
    if (cpu::kernel_supported(i)) names.append(names.empty() ? "" : ",").append(cpu::kernel(i).name);
  return names;
}

// A kernel's name makes its instruction set the active one; "auto" puts back the one that was active before.
bool select_cpu_kernel(const std::string& name) {
  static std::atomic<int> before{-1};
  if (!cpu::select_kernel(name.c_str())) return false;
  for (int i = 0; i < cpu::kernel_count(); ++i) {
    if (name != cpu::kernel(i).name) continue;
    int none = -1;
    before.compare_exchange_strong(none, cpu::active_isa());
    return cpu::select_isa(cpu::isa(cpu::kernel(i).isa).name);
  }
  const int isa = before.exchange(-1);
  return isa < 0 || cpu::select_isa(cpu::isa(isa).name);
}

}  // namespace
}  // namespace bitnas::ops

STABLE_TORCH_LIBRARY_IMPL(bitnas, CPU, m) {
  using namespace bitnas::ops;
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("unpack", TORCH_BOX(&unpack));
  m.impl("float_conv2d", TORCH_BOX(&float_conv2d));
  m.impl("float_conv2d_bits", TORCH_BOX(&float_conv2d_bits));
  m.impl("prepare_weight", TORCH_BOX(&prepare_weight));
  m.impl("max_pool2d_bits", TORCH_BOX(&max_pool2d_bits));
  Dots<&run_conv2d, &run_pack>::implement(m);
  Floats<&run_join, &run_pack>::implement(m);
}

STABLE_TORCH_LIBRARY_IMPL(bitnas, CompositeExplicitAutograd, m) {
  m.impl("prepared_kernel", TORCH_BOX(&bitnas::ops::prepared_kernel));
  m.impl("cpu_isas", TORCH_BOX(&bitnas::ops::cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&bitnas::ops::cpu_isa));
  m.impl("select_cpu_isa", TORCH_BOX(&bitnas::ops::select_cpu_isa));
  m.impl("cpu_kernels", TORCH_BOX(&bitnas::ops::cpu_kernels));
  m.impl("select_cpu_kernel", TORCH_BOX(&bitnas::ops::select_cpu_kernel));
}
