// Implicit matrix product on mma.sync: tiles of activations are gathered window by
// window with cp.async, several slabs ahead, and multiplied from registers.
//
// `Product` multiplies one step of 256 bits: conv2d_mma_b1.cu on binary tensor cores,
// conv2d_mma_int8.cu on those for bytes.
#pragma once

#include <algorithm>

#include "kernels/cuda/epilogue.cuh"

namespace bitnas::cuda {

// blocks: that a multiprocessor should hold at once; bounds the registers.
template <int m, int n, int warps_m, int warps_n, int stages, int blocks>
struct TileShape {
  static constexpr int kM = m, kN = n, kStages = stages, kBlocks = blocks;
  static constexpr int kWarpsM = warps_m, kWarpsN = warps_n;
  static constexpr int kWarpM = m / warps_m, kWarpN = n / warps_n;
  static constexpr int kRows = kWarpM / 16, kCols = kWarpN / 8;  // fragments of one warp
  static constexpr int kThreads = warps_m * warps_n * kWarp;
  // Shared memory: what is known of each row, then the stages, no more of them than there are slabs.
  static constexpr int kClassesOffset = m * static_cast<int>(sizeof(Window));
  static constexpr int kOnesOffset = kClassesOffset + m;
  static constexpr int kStagesOffset = kOnesOffset + m * static_cast<int>(sizeof(int));
  static constexpr int kStageBytes = (m + n) * kSlabBytes;
  static_assert(kRows >= 1 && kCols % 4 == 0);
};

// Which tile of which group a block computes, and which slabs of it. Neighbouring blocks share weights for a band of
// positions and then move on, so that both operands stay in L2.
struct Work {
  int64_t m;
  int n, group, split;
  int slab, slab_end;
};

template <typename Tile>
BITNAS_DEVICE Work work_of_block(const ConvArgs& args, int tiles_n) {
  int64_t index = blockIdx.x;
  Work work;
  work.split = static_cast<int>(index % args.splits), index /= args.splits;
  work.n = static_cast<int>(index % tiles_n) * Tile::kN, index /= tiles_n;
  const int64_t tiles_m = (args.m + Tile::kM - 1) / Tile::kM;
  work.m = index % tiles_m * Tile::kM;
  work.group = static_cast<int>(index / tiles_m);
  const int slabs = (args.k_words + kSlabWords - 1) / kSlabWords;
  work.slab = static_cast<int>(int64_t{slabs} * work.split / args.splits);
  work.slab_end = static_cast<int>(int64_t{slabs} * (work.split + 1) / args.splits);
  return work;
}

// Copies slabs of both operands into stages. A thread brings the same chunk of every sixteenth row (or so), so it
// finds the tap and channel of its chunk once a slab.
template <typename Tile>
class Loader {
 public:
  BITNAS_DEVICE Loader(const ConvArgs& args, const Work& work, uint8_t* shared)
      : args_(args),
        windows_(reinterpret_cast<const Window*>(shared)),
        stages_(ptx::shared_address(shared) + Tile::kStagesOffset),
        x_(args.x + int64_t{work.group} * args.group_words),
        w_(args.w + (int64_t{work.group} * args.n + work.n) * args.row_words),
        channels_(min(Tile::kN, args.n - work.n)),
        chunk_(threadIdx.x % kSlabChunks),
        row_(threadIdx.x / kSlabChunks) {}

  BITNAS_DEVICE void load(int slab, int stage) const {
    const uint32_t a = stages_ + stage * Tile::kStageBytes, b = a + Tile::kM * kSlabBytes;
    const int word = slab * kSlabWords + chunk_ * 2;
    if (args_.wide_loads) {
      const Source source = source_of(word);
#pragma unroll
      for (int i = 0; i < Tile::kM / kRowStep; ++i) {
        const int row = row_ + i * kRowStep;
        copy<16>(a + swizzled(row, chunk_), windows_[row], source);
      }
    } else {
      const Source low = source_of(word), high = source_of(word + 1);
#pragma unroll
      for (int i = 0; i < Tile::kM / kRowStep; ++i) {
        const int row = row_ + i * kRowStep;
        const uint32_t to = a + swizzled(row, chunk_);
        copy<8>(to, windows_[row], low);
        copy<8>(to + 8, windows_[row], high);
      }
    }
    const bool in_row = word < args_.row_words;
#pragma unroll
    for (int i = 0; i < Tile::kN / kRowStep; ++i) {
      const int row = row_ + i * kRowStep;
      const bool valid = in_row && row < channels_;
      ptx::cp_async<16>(b + swizzled(row, chunk_), valid ? w_ + int64_t{row} * args_.row_words + word : args_.w, valid);
    }
  }

 private:
  static constexpr int kRowStep = Tile::kThreads / kSlabChunks;

  // Where a word of the row comes from, relative to a window.
  struct Source {
    int y, x;  // pixels from the window's first tap
    int word;  // of the pixel's group
    bool valid;
  };

  BITNAS_DEVICE Source source_of(int word) const {
    const int tap = word / args_.group_words, ky = tap / args_.kernel_w;
    return {ky * args_.dilation_h, (tap - ky * args_.kernel_w) * args_.dilation_w, word - tap * args_.group_words,
            word < args_.k_words};
  }

  template <int bytes>
  BITNAS_DEVICE void copy(uint32_t to, const Window& window, const Source& source) const {
    const int y = window.y + source.y, x = window.x + source.x;
    const bool valid = source.valid && is_inside(args_, y, x);
    const int64_t pixel = window.first_pixel + int64_t{y} * args_.width + x;
    ptx::cp_async<bytes>(to, valid ? x_ + pixel * args_.pixel_words + source.word : args_.x, valid);
  }

  const ConvArgs& args_;
  const Window* windows_;
  const uint32_t stages_;
  const Word* x_;
  const Word* w_;
  const int channels_;
  const int chunk_, row_;
};

// Popcounts of the rows whose fragments pass through a warp. Warps side by side hold the same rows and share them out.
template <typename Tile>
class RowOnes {
 public:
  BITNAS_DEVICE void add(const uint32_t (&a)[Tile::kRows][4], int warp_n) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      if (i % Tile::kWarpsN != warp_n) continue;
      ones_[i / Tile::kWarpsN][0] += __popc(a[i][0]) + __popc(a[i][2]);
      ones_[i / Tile::kWarpsN][1] += __popc(a[i][1]) + __popc(a[i][3]);
    }
  }

  // To shared memory, one int per row of the tile.
  BITNAS_DEVICE void store(int* ones, int warp_m, int warp_n) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      if (i % Tile::kWarpsN != warp_n) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int sum = ones_[i / Tile::kWarpsN][h];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        if (lane % 4 == 0) ones[warp_m * Tile::kWarpM + i * 16 + h * 8 + lane / 4] = sum;
      }
    }
  }

 private:
  int ones_[(Tile::kRows + Tile::kWarpsN - 1) / Tile::kWarpsN][2] = {};
};

// Offsets of every class of valid taps and channel of the tile, [classes][kN]. Of a split sum, the first part brings
// them.
template <typename Tile>
BITNAS_DEVICE void stage_offsets(const ConvArgs& args, const Work& work, int* offsets) {
  const int classes = args.rows.count * args.columns.count;
  const bool brings = args.sign && work.split == 0;
  for (int i = threadIdx.x; i < classes * Tile::kN; i += Tile::kThreads) {
    const int n = work.n + i % Tile::kN, y = i / Tile::kN / args.columns.count, x = i / Tile::kN % args.columns.count;
    offsets[i] = brings && n < args.n ? offset_of(args, args.rows.begin[y], args.rows.end[y], args.columns.begin[x],
                                                  args.columns.end[x], work.group * args.n + n)
                                      : 0;
  }
}

template <typename Tile, typename Product, EpilogueKind kind>
BITNAS_DEVICE void compute_tile(const ConvArgs& args, int tiles_n) {
  BITNAS_SHARED(shared);
  auto* windows = reinterpret_cast<Window*>(shared);
  auto* classes = shared + Tile::kClassesOffset;
  auto* ones = reinterpret_cast<int*>(shared + Tile::kOnesOffset);
  const Work work = work_of_block<Tile>(args, tiles_n);
  for (int row = threadIdx.x; row < Tile::kM; row += Tile::kThreads) {
    windows[row] = window_of(args, work.m + row);
    classes[row] = static_cast<uint8_t>(class_of(args, windows[row]));
  }
  __syncthreads();

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_m = warp % Tile::kWarpsM, warp_n = warp / Tile::kWarpsM;
  const Loader<Tile> loader(args, work, shared);
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (work.slab + stage < work.slab_end) loader.load(work.slab + stage, stage);
    ptx::cp_async_commit();
  }

  int acc[Tile::kRows * Tile::kCols * 4] = {};
  RowOnes<Tile> row_ones;
  int stage = 0;
  for (int slab = work.slab; slab < work.slab_end; ++slab) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the slab is here for all, and all are done with the stage that is loaded next
    const int ahead = slab + Tile::kStages - 1;
    if (ahead < work.slab_end) loader.load(ahead, (stage + Tile::kStages - 1) % Tile::kStages);
    ptx::cp_async_commit();

    const uint32_t a_tile = ptx::shared_address(shared) + Tile::kStagesOffset + stage * Tile::kStageBytes;
    const uint32_t b_tile = a_tile + Tile::kM * kSlabBytes;
    const int steps = min(kSlabWords, args.k_words - slab * kSlabWords);
#pragma unroll
    for (int step = 0; step < kSlabWords / kStepWords; ++step) {
      if (step * kStepWords >= steps) break;
      uint32_t a[Tile::kRows][4], b[Tile::kCols][2];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
        ptx::ldmatrix_x4(a[i], a_tile + swizzled(warp_m * Tile::kWarpM + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < Tile::kCols; j += 2) {
        const int row = warp_n * Tile::kWarpN + j * 8 + lane % 8 + lane / 16 * 8;
        uint32_t two[4];
        ptx::ldmatrix_x4(two, b_tile + swizzled(row, step * 2 + lane / 8 % 2));
        b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
      }
      row_ones.add(a, warp_n);
      Product::template multiply<Tile::kRows, Tile::kCols>(acc, a, b);
    }
    stage = (stage + 1) % Tile::kStages;
  }

  row_ones.store(ones, warp_m, warp_n);
  __syncthreads();  // nobody reads the stages any more
  auto* offsets = reinterpret_cast<int*>(shared + Tile::kStagesOffset);
  stage_offsets<Tile>(args, work, offsets);
  __syncthreads();
  Fragments<Tile::kRows, Tile::kCols, Tile::kN> fragments(args, acc, work.m, warp_m * Tile::kWarpM, work.group,
                                                          work.n + warp_n * Tile::kWarpN, ones,
                                                          {offsets + warp_n * Tile::kWarpN, classes});
  store_fragments<kind>(fragments);
}

template <typename Tile, typename Product, EpilogueKind kind>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    conv2d_mma_kernel(const __grid_constant__ ConvArgs args, int tiles_n) {
  if constexpr (Product::kRunsHere)
    compute_tile<Tile, Product, kind>(args, tiles_n);
  else
    __trap();  // never chosen here
}

template <typename Tile, typename Product, EpilogueKind kind>
cudaError_t launch_tile(const ConvArgs& args, cudaStream_t stream) {
  const int64_t tiles_m = (args.m + Tile::kM - 1) / Tile::kM;
  const int64_t tiles_n = (covered_channels(args) + Tile::kN - 1) / Tile::kN;
  const int64_t blocks = tiles_m * tiles_n * args.groups * args.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const int slabs = (args.k_words + kSlabWords - 1) / kSlabWords, most = (slabs + args.splits - 1) / args.splits;
  const size_t table_bytes = size_t{sizeof(int)} * args.rows.count * args.columns.count * Tile::kN;
  const size_t shared_bytes =
      Tile::kStagesOffset + std::max(std::min(most, Tile::kStages) * size_t{Tile::kStageBytes}, table_bytes);
  return launch(conv2d_mma_kernel<Tile, Product, kind>,
                {dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), shared_bytes}, stream, args,
                static_cast<int>(tiles_n));
}

template <typename Tile, typename Product>
cudaError_t launch_kind(const ConvArgs& args, cudaStream_t stream) {
  if (args.splits > 1 || args.epilogue.kind == EpilogueKind::kInt32)
    return launch_tile<Tile, Product, EpilogueKind::kInt32>(args, stream);
  if (args.epilogue.kind == EpilogueKind::kBits) return launch_tile<Tile, Product, EpilogueKind::kBits>(args, stream);
  return launch_tile<Tile, Product, EpilogueKind::kFloat>(args, stream);
}

}  // namespace bitnas::cuda
