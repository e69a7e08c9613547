// From a convolution's arguments to launches: choose the kernel, regroup the input
// where groups end inside words, gather split sums.
#include <algorithm>

#include "kernels/cuda/epilogue.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;

// Groups of this input start at whole words, or there is one.
bool groups_aligned(const Conv2dShape& s) { return s.groups == 1 || s.group_channels() % kWordBits == 0; }

// Packed pixels with each group at a word of its own, bits past the group's channels zero.
__global__ void regroup_kernel(const Word* x, Word* out, int64_t words, int64_t group_channels, int64_t group_words,
                               int64_t groups, int64_t total) {
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t at = index;
  const int64_t word = index % group_words;
  index /= group_words;
  const int64_t group = index % groups, pixel = index / groups;
  const int64_t bit = group * group_channels + word * kWordBits, shift = bit % kWordBits;
  const Word* from = x + pixel * words + bit / kWordBits;
  Word bits = from[0] >> shift;
  const int64_t count = min(kWordBits, group_channels - word * kWordBits);
  if (shift != 0 && shift + count > kWordBits) bits |= from[1] << (kWordBits - shift);
  out[at] = count == kWordBits ? bits : bits & ((Word{1} << count) - 1);
}

// The epilogue of dots that a split launch summed up. A warp per 32 channels of one position.
__global__ void finish_kernel(const __grid_constant__ ConvArgs args, int64_t blocks_n, int64_t warps) {
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (index >= warps) return;
  const int64_t n_first = index % blocks_n * kWarp, m = index / blocks_n % args.m;
  const int group = static_cast<int>(index / blocks_n / args.m);
  const int64_t n = n_first + threadIdx.x % kWarp;
  const int dot = n < args.n ? args.partial[m * args.out_channels + group * int64_t{args.n} + n] : 0;
  store_channels(args, m, group, n_first, dot);
}

cudaError_t grid_for(int64_t threads, dim3* grid) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  *grid = dim3(static_cast<unsigned>(blocks));
  return cudaSuccess;
}

int64_t pixel_words(const Conv2dShape& s) {
  return groups_aligned(s) ? words_for(s.channels) : s.groups * words_for(s.group_channels());
}

bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// The distinct intervals of valid taps along one axis. False: there is no room for all of them.
bool axis_classes(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t out_size,
                  AxisClasses* classes) {
  classes->count = 0;
  if (kernel > UINT8_MAX) return false;
  const auto add = [&](int64_t position) {
    const TapInterval taps = valid_taps(position * stride - padding, kernel, dilation, size);
    for (int i = 0; i < classes->count; ++i)
      if (classes->begin[i] == taps.begin && classes->end[i] == taps.end) return taps;
    if (classes->count < AxisClasses::kMost) {
      classes->begin[classes->count] = static_cast<uint8_t>(taps.begin);
      classes->end[classes->count] = static_cast<uint8_t>(taps.end);
    }
    ++classes->count;
    return taps;
  };
  // From both ends up to the first position that misses no tap there: all between are alike.
  int64_t first = 0, last = out_size - 1;
  while (first <= last && add(first).begin > 0 && classes->count <= AxisClasses::kMost) ++first;
  while (first <= last && add(last).end < kernel && classes->count <= AxisClasses::kMost) --last;
  if (first <= last) add(first);
  return classes->count <= AxisClasses::kMost;
}

Problem problem_of(const Conv2dShape& s, const Word* x) {
  Problem p{};
  p.m = s.images * s.out_height * s.out_width;
  p.n = s.group_out_channels();
  p.words = s.taps() * words_for(s.group_channels());
  p.groups = s.groups;
  p.matrix = s.pointwise();
  p.aligned = pixel_words(s) % 2 == 0 && is_aligned(x, 16);
  AxisClasses rows, columns;
  constexpr int kMostClasses = 128;  // in all, so that the table of offsets fits where the stages were
  p.many_borders = !axis_classes(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_height, &rows) ||
                   !axis_classes(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_width, &columns) ||
                   rows.count * columns.count > kMostClasses;
  return p;
}

bool fits_int(std::initializer_list<int64_t> values) {
  return std::all_of(values.begin(), values.end(), [](int64_t v) { return v <= INT32_MAX; });
}

ConvArgs conv_args(const Conv2dArgs& args, const void* prepared, const void* regrouped) {
  const Conv2dShape& s = args.shape;
  const PreparedLayout layout = prepared_layout(s);
  const Epilogue& e = args.epilogue;
  ConvArgs a{};
  a.x = regrouped == nullptr ? args.x : static_cast<const Word*>(regrouped);
  a.w = static_cast<const Word*>(prepared);
  a.ones = reinterpret_cast<const int32_t*>(static_cast<const uint8_t*>(prepared) + layout.ones_offset);
  a.m = s.images * s.out_height * s.out_width;
  // The rows of a matrix are images of one pixel: no coordinate grows with their number.
  a.height = s.pointwise() ? 1 : static_cast<int>(s.height);
  a.width = s.pointwise() ? 1 : static_cast<int>(s.width);
  a.out_height = s.pointwise() ? 1 : static_cast<int>(s.out_height);
  a.out_width = s.pointwise() ? 1 : static_cast<int>(s.out_width);
  a.kernel_h = static_cast<int>(s.kernel_h), a.kernel_w = static_cast<int>(s.kernel_w);
  a.stride_h = static_cast<int>(s.stride_h), a.stride_w = static_cast<int>(s.stride_w);
  a.padding_h = static_cast<int>(s.padding_h), a.padding_w = static_cast<int>(s.padding_w);
  a.dilation_h = static_cast<int>(s.dilation_h), a.dilation_w = static_cast<int>(s.dilation_w);
  a.pixel_words = static_cast<int>(pixel_words(s));
  a.group_words = static_cast<int>(words_for(s.group_channels()));
  a.group_channels = static_cast<int>(s.group_channels());
  a.k_words = static_cast<int>(s.taps()) * a.group_words;
  a.row_words = static_cast<int>(layout.row_words);
  a.n = static_cast<int>(s.group_out_channels());
  a.groups = static_cast<int>(s.groups);
  a.out_channels = static_cast<int>(s.out_channels);
  a.sign = s.encoding == Encoding::kSign;
  a.alpha = a.sign ? 4 : 2, a.beta = a.sign ? 2 : 1;
  // Those that do not fit are left out: only kPopc gets such layers, which needs none.
  axis_classes(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_height, &a.rows);
  axis_classes(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_width, &a.columns);
  a.wide_loads = a.pixel_words % 2 == 0 && a.group_words % 2 == 0 && is_aligned(a.x, 16);
  a.wide_stores = a.out_channels % 8 == 0 && a.n % 8 == 0 && is_aligned(e.out, 16) && is_aligned(e.residual, 16);
  a.merge = a.groups > 1 && a.n % 32 != 0;
  a.splits = 1;
  a.epilogue = e;
  return a;
}

cudaError_t run(const ConvArgs& args, const Conv2dPlan& plan, cudaStream_t stream) {
  const Kernel& kernel = cuda::kernel(plan.choice.kernel);
  switch (kernel.family) {
    case Family::kPopc: return conv2d_popc(args, stream);
    case Family::kMma: return conv2d_mma_b1(args, kernel, stream);
    case Family::kInt8: return conv2d_mma_int8(args, kernel, stream);
    case Family::kWgmma: return gemm_wgmma(args, kernel, plan.multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t plan_conv2d(const Conv2dArgs& args, int device, Conv2dPlan* plan) {
  const Conv2dShape& s = args.shape;
  int major = 0, minor = 0;
  for (const auto& [attribute, value] :
       {std::pair{cudaDevAttrComputeCapabilityMajor, &major}, std::pair{cudaDevAttrComputeCapabilityMinor, &minor},
        std::pair{cudaDevAttrMultiProcessorCount, &plan->multiprocessors}})
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device); error != cudaSuccess) return error;
  plan->choice = choose(problem_of(s, args.x), 10 * major + minor, plan->multiprocessors);
  plan->regrouped_bytes =
      groups_aligned(s) ? 0 : s.images * s.height * s.width * pixel_words(s) * int64_t{sizeof(Word)};
  // Dots that leave as int32 are summed where they go.
  const bool apart = plan->choice.splits > 1 && args.epilogue.kind != EpilogueKind::kInt32;
  plan->partial_bytes = apart ? s.images * s.out_height * s.out_width * s.out_channels * int64_t{sizeof(int32_t)} : 0;
  return cudaSuccess;
}

cudaError_t conv2d(const Conv2dArgs& args, const Conv2dPlan& plan, const void* prepared, void* regrouped, void* partial,
                   cudaStream_t stream) {
  const Conv2dShape& s = args.shape;
  const int64_t rows = s.images * s.out_height * s.out_width;
  if (rows == 0) return cudaSuccess;
  if (!fits_int({s.out_channels, s.channels, prepared_layout(s).row_words, pixel_words(s)}) ||
      (!s.pointwise() &&
       !fits_int({s.height + 2 * s.padding_h, s.width + 2 * s.padding_w, s.out_height * s.out_width})))
    return cudaErrorInvalidValue;

  if (regrouped != nullptr) {
    const int64_t group_words = words_for(s.group_channels());
    const int64_t total = s.images * s.height * s.width * s.groups * group_words;
    LaunchConfig config{{}, dim3(kThreads)};
    cudaError_t error = grid_for(total, &config.grid);
    if (error == cudaSuccess)
      error = launch(regroup_kernel, config, stream, args.x, static_cast<Word*>(regrouped), words_for(s.channels),
                     s.group_channels(), group_words, s.groups, total);
    if (error != cudaSuccess) return error;
  }

  ConvArgs a = conv_args(args, prepared, regrouped);
  Word* bits = a.epilogue.kind == EpilogueKind::kBits ? static_cast<Word*>(a.epilogue.out) : a.epilogue.packed;
  if (bits != nullptr && a.groups > 1 && (a.merge || a.out_channels % kWordBits != 0)) {
    // Bits are merged into these words, or leave the end of each pixel's last word alone.
    const size_t bytes = static_cast<size_t>(rows * words_for(s.out_channels)) * sizeof(Word);
    if (const cudaError_t error = cudaMemsetAsync(bits, 0, bytes, stream); error != cudaSuccess) return error;
  }

  if (plan.choice.splits == 1) return run(a, plan, stream);

  const bool in_place = a.epilogue.kind == EpilogueKind::kInt32;
  ConvArgs part = a;
  part.splits = static_cast<int>(plan.choice.splits);
  part.partial = static_cast<int32_t*>(in_place ? a.epilogue.out : partial);
  const size_t bytes = static_cast<size_t>(rows * s.out_channels) * sizeof(int32_t);
  if (const cudaError_t error = cudaMemsetAsync(part.partial, 0, bytes, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = run(part, plan, stream); error != cudaSuccess || in_place) return error;
  a.partial = part.partial;
  const int64_t blocks_n = (covered_channels(a) + kWarp - 1) / kWarp, warps = blocks_n * a.m * a.groups;
  LaunchConfig config{{}, dim3(kThreads)};
  if (const cudaError_t error = grid_for(warps * kWarp, &config.grid); error != cudaSuccess) return error;
  return launch(finish_kernel, config, stream, a, blocks_n, warps);
}

}  // namespace bitnas::cuda
