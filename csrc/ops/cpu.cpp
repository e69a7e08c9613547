// CPU implementations of the operators in schema.cpp: checks, allocation, and the
// split of the work over torch's own thread pool.
#include <string>
#include <vector>

#include "kernels/cpu/conv2d.h"
#include "kernels/cpu/isa.h"
#include "ops/checks.h"

namespace bitnas::ops {
namespace {

// Work below this many elements stays on the calling thread.
constexpr int64_t kPackGrain = int64_t{1} << 15;

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Chunks [begin, end) of `count` items on torch's threads; one chunk runs right here.
template <typename F>
void split(int64_t count, int64_t grain, const F& run) {
  if (count <= grain) {
    if (count > 0) run(0, count);
  } else {
    torch::stable::parallel_for(0, count, grain, run);
  }
}

Tensor run_pack(const Tensor& x, PackArgs args) {
  Tensor out = empty_packed_like(x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  const int64_t pixels = x.size(0) * args.plane;
  const PackFn kernel = cpu::isa(cpu::active_isa()).pack;
  split(pixels, kPackGrain / args.channels + 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
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
  args.thresholds = data<float>(threshold);
  args.directions = data<float>(direction);
  return run_pack(x, args);
}

Tensor unpack(const Tensor& packed, int64_t channels, bool unit) {
  check_packed("unpack", "packed", packed, packed.dim() == 2 ? 2 : 4);
  const int64_t rank = packed.dim(), words = packed.size(rank - 1);
  STD_TORCH_CHECK(channels > 0 && words == words_for(channels), "unpack: channels (", channels, ") must fill the ",
                  words, " words per pixel");
  const int32_t dtype = aoti_torch_dtype_float32();
  Tensor out = rank == 2
                   ? empty_contiguous<2>({packed.size(0), channels}, dtype, packed)
                   : empty_contiguous<4>({packed.size(0), packed.size(1), packed.size(2), channels}, dtype, packed);
  const Word* in = data<Word>(packed);
  auto* values = static_cast<float*>(out.mutable_data_ptr());
  const float zero = unit ? 0.0f : -1.0f;
  split(words == 0 ? 0 : packed.numel() / words, kPackGrain / channels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t c = 0; c < channels; ++c)
        values[p * channels + c] = (in[p * words + c / kWordBits] >> (c % kWordBits)) & 1 ? 1.0f : zero;
  });
  return out;
}

Tensor prepare_weight(const Tensor& weight, int64_t in_channels, int64_t groups) {
  const Conv2dShape shape = weight_shape("prepare_weight", weight, in_channels, groups);
  const int isa = cpu::active_isa();
  Tensor out = empty_contiguous<1>({cpu::Prepared::bytes(isa, shape)}, aoti_torch_dtype_uint8(), weight);
  cpu::Prepared::prepare(isa, shape, data<Word>(weight), static_cast<uint8_t*>(out.mutable_data_ptr()));
  return out;
}

void run_conv2d(const Conv2dArgs& args, const Tensor& weight, const std::optional<Tensor>& prepared) {
  cpu::Prepared weights;
  if (prepared.has_value() && prepared->scalar_type() == ScalarType::Byte && prepared->is_contiguous() &&
      prepared->is_cpu())
    weights = cpu::Prepared::view(data<uint8_t>(*prepared), prepared->numel(), args.shape);
  std::vector<uint8_t> made;
  if (!weights) {
    const int isa = cpu::active_isa();
    made.resize(cpu::Prepared::bytes(isa, args.shape));
    cpu::Prepared::prepare(isa, args.shape, data<Word>(weight), made.data());
    weights = cpu::Prepared::view(made.data(), static_cast<int64_t>(made.size()), args.shape);
  }
  const cpu::Conv2dPlan plan(args, weights, torch::stable::get_num_threads());
  split(plan.tasks(), 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<uint8_t> scratch;
    for (int64_t task = begin; task < end; ++task) plan.run(task, scratch);
  });
}

// Output of a convolution or, with rows, of a linear layer; channels last either way.
Tensor empty_dots(const Conv2dShape& s, bool rows, int32_t dtype, const Tensor& like) {
  if (rows) return empty_contiguous<2>({s.out_width, s.out_channels}, dtype, like);
  const int64_t n = s.out_channels, h = s.out_height, w = s.out_width;
  return empty<4>({s.images, n, h, w}, {h * w * n, 1, w * n, n}, dtype, like);
}

Tensor run_int32(const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& prepared) {
  Tensor out = empty_dots(s, rows, aoti_torch_dtype_int32(), x);
  Conv2dArgs args{s, data<Word>(x), {}};
  args.epilogue.kind = EpilogueKind::kInt32;
  args.epilogue.out = out.mutable_data_ptr();
  run_conv2d(args, weight, prepared);
  return out;
}

Tensor run_float(const char* op, const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& prepared, const Tensor& scale, const Tensor& bias) {
  check_vector(op, "scale", scale, ScalarType::Float, "float32", s.out_channels, x);
  check_vector(op, "bias", bias, ScalarType::Float, "float32", s.out_channels, x);
  Tensor out = empty_dots(s, rows, aoti_torch_dtype_float32(), x);
  Conv2dArgs args{s, data<Word>(x), {}};
  args.epilogue.kind = EpilogueKind::kFloat;
  args.epilogue.out = out.mutable_data_ptr();
  args.epilogue.scale = data<float>(scale);
  args.epilogue.bias = data<float>(bias);
  run_conv2d(args, weight, prepared);
  return out;
}

Tensor run_bits(const char* op, const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                const std::optional<Tensor>& prepared, const Tensor& threshold, const std::optional<Tensor>& flip) {
  const int64_t words = words_for(s.out_channels);
  check_vector(op, "threshold", threshold, ScalarType::Int, "int32", s.out_channels, x);
  if (flip.has_value()) check_vector(op, "flip", *flip, ScalarType::Long, "int64", words, x);
  const int32_t dtype = aoti_torch_dtype_int64();
  Tensor out = rows ? empty_contiguous<2>({s.out_width, words}, dtype, x)
                    : empty_contiguous<4>({s.images, s.out_height, s.out_width, words}, dtype, x);
  Conv2dArgs args{s, data<Word>(x), {}};
  args.epilogue.kind = EpilogueKind::kBits;
  args.epilogue.out = out.mutable_data_ptr();
  args.epilogue.threshold = data<int32_t>(threshold);
  args.epilogue.flip = flip.has_value() ? data<Word>(*flip) : nullptr;
  run_conv2d(args, weight, prepared);
  return out;
}

#define CONV2D_PARAMS                                                                                                \
  int64_t in_channels, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, \
      int64_t dilation_w, int64_t groups, bool unit
#define CONV2D_SHAPE(op)      \
  check_conv2d(op, x, weight, \
               {in_channels, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, unit})

Tensor conv2d_int32(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared, CONV2D_PARAMS) {
  return run_int32(CONV2D_SHAPE("conv2d_int32"), false, x, weight, prepared);
}

Tensor conv2d_float(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared, const Tensor& scale,
                    const Tensor& bias, CONV2D_PARAMS) {
  return run_float("conv2d_float", CONV2D_SHAPE("conv2d_float"), false, x, weight, prepared, scale, bias);
}

Tensor conv2d_bits(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared,
                   const Tensor& threshold, const std::optional<Tensor>& flip, CONV2D_PARAMS) {
  return run_bits("conv2d_bits", CONV2D_SHAPE("conv2d_bits"), false, x, weight, prepared, threshold, flip);
}

Tensor linear_int32(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared, int64_t in_features,
                    bool unit) {
  return run_int32(check_linear("linear_int32", x, weight, in_features, unit), true, x, weight, prepared);
}

Tensor linear_float(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared, const Tensor& scale,
                    const Tensor& bias, int64_t in_features, bool unit) {
  return run_float("linear_float", check_linear("linear_float", x, weight, in_features, unit), true, x, weight,
                   prepared, scale, bias);
}

Tensor linear_bits(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& prepared,
                   const Tensor& threshold, const std::optional<Tensor>& flip, int64_t in_features, bool unit) {
  return run_bits("linear_bits", check_linear("linear_bits", x, weight, in_features, unit), true, x, weight, prepared,
                  threshold, flip);
}

Tensor max_pool2d_bits(const Tensor& x, const std::optional<Tensor>& flip, int64_t kernel_h, int64_t kernel_w,
                       int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w) {
  const char* op = "max_pool2d_bits";
  MaxPool2dArgs args = check_max_pool2d(op, x, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w);
  if (flip.has_value()) {
    check_vector(op, "flip", *flip, ScalarType::Long, "int64", args.words, x);
    args.flip = data<Word>(*flip);
  }
  Tensor out =
      empty_contiguous<4>({x.size(0), args.out_height, args.out_width, args.words}, aoti_torch_dtype_int64(), x);
  args.out = static_cast<Word*>(out.mutable_data_ptr());
  const int64_t row_words = args.out_width * args.words * kernel_h * kernel_w + 1;
  split(x.size(0) * args.out_height, kPackGrain / row_words + 1,
        [&](int64_t begin, int64_t end) { cpu::max_pool2d(args, begin, end); });
  return out;
}

std::string cpu_isas() {
  std::string names;
  for (int i = 0; i < cpu::isa_count(); ++i)
    if (cpu::isa_supported(i)) names.append(names.empty() ? "" : ",").append(cpu::isa(i).name);
  return names;
}

std::string cpu_isa() { return cpu::isa(cpu::active_isa()).name; }

bool select_cpu_isa(const std::string& name) { return cpu::select_isa(name.c_str()); }

}  // namespace
}  // namespace bitnas::ops

STABLE_TORCH_LIBRARY_IMPL(bitnas, CPU, m) {
  using namespace bitnas::ops;
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("pack_channels", TORCH_BOX(&pack_channels));
  m.impl("unpack", TORCH_BOX(&unpack));
  m.impl("prepare_weight", TORCH_BOX(&prepare_weight));
  m.impl("conv2d_int32", TORCH_BOX(&conv2d_int32));
  m.impl("conv2d_float", TORCH_BOX(&conv2d_float));
  m.impl("conv2d_bits", TORCH_BOX(&conv2d_bits));
  m.impl("linear_int32", TORCH_BOX(&linear_int32));
  m.impl("linear_float", TORCH_BOX(&linear_float));
  m.impl("linear_bits", TORCH_BOX(&linear_bits));
  m.impl("max_pool2d_bits", TORCH_BOX(&max_pool2d_bits));
}

STABLE_TORCH_LIBRARY_IMPL(bitnas, CompositeExplicitAutograd, m) {
  m.impl("cpu_isas", TORCH_BOX(&bitnas::ops::cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&bitnas::ops::cpu_isa));
  m.impl("select_cpu_isa", TORCH_BOX(&bitnas::ops::select_cpu_isa));
}
