// gemm_wgmma on the host model against plain loops: `gemm_wgmma_check SEED COUNT` draws
// COUNT matrix products, each with one epilogue, and exits with 1 at the first value that
// is wrong. The operators' tests run the kernel too, but on one number of multiprocessors;
// how many blocks share the tiles is what the kernel's pipeline depends on.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/gemm_wgmma.cu"

namespace bitnas::cuda {
namespace {

model::Random draws(0);

template <typename T, size_t count>
T one_of(const T (&values)[count]) {
  return values[draws.below(count)];
}
bool coin() { return draws.one_in(2); }
// In eighths, so that sums come close to limits.
float small_float() { return (static_cast<float>(draws.below(129)) - 64) / 8; }

// The 16-bit types by the model's own conversions, which test_model.py checks.
float to_float(float x) { return x; }
float to_float(__half x) { return __half2float(x); }
float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
void from_float(float x, float& to) { to = x; }
void from_float(float x, __half& to) { to = __float2half_rn(x); }
void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

struct Case {
  int m = one_of({1, 63, 64, 65, 128, 200, 300, 600}), n = one_of({8, 64, 100, 130, 256, 300});
  int words = one_of({2, 4, 16, 18, 40, 72}), bits = words * 64 - static_cast<int>(draws.below(64));
  int pixel_words = words + 2 * static_cast<int>(draws.below(2)),
      row_words = words + 2 * static_cast<int>(draws.below(2));
  int multiprocessors = one_of({1, 2, 3, 5, 132}), tile_n = one_of({128, 256});
  bool sign = coin();

  std::string text(const char* epilogue) const {
    char line[160];
    std::snprintf(line, sizeof line, "%dx%d of %d bits, %d words a pixel, %s, %d multiprocessors, tile 128x%d, %s", m,
                  n, bits, pixel_words, sign ? "sign" : "unit", multiprocessors, tile_n, epilogue);
    return line;
  }
};

[[noreturn]] void fail(const std::string& what, int64_t at) {
  std::fprintf(stderr, "wrong: %s, at %lld\n", what.c_str(), static_cast<long long>(at));
  std::exit(1);
}

// Rows of `bits` random bits, 16-byte aligned; what follows them in a row is random too where `filled`, zero elsewhere.
class Rows {
 public:
  Rows(int rows, int bits, int pitch, bool filled) : pitch_(pitch), words_(static_cast<size_t>(rows) * pitch + 1) {
    const int words = (bits + 63) / 64;
    for (int row = 0; row < rows; ++row)
      for (int word = 0; word < pitch; ++word) {
        const Word drawn = static_cast<Word>(draws.draw()) << 32 | draws.draw();
        const Word valid = word + 1 < words || bits % 64 == 0 ? ~Word{0} : (Word{1} << bits % 64) - 1;
        data()[static_cast<size_t>(row) * pitch + word] = word < words ? drawn & valid : filled ? drawn : 0;
      }
  }
  Word* data() { return words_.data() + reinterpret_cast<uintptr_t>(words_.data()) / 8 % 2; }
  const Word* row(int index) { return data() + static_cast<size_t>(index) * pitch_; }

 private:
  int pitch_;
  std::vector<Word> words_;
};

int dot_of(const Case& c, const Word* x, const Word* w) {
  int differing = 0, plus = 0, minus = 0;
  for (int word = 0; word < c.words; ++word) {
    differing += __popcll(x[word] ^ w[word]);
    plus += __popcll(x[word] & w[word]);
    minus += __popcll(x[word] & ~w[word]);
  }
  return c.sign ? c.bits - 2 * differing : plus - minus;
}

// Outputs with more behind them that must stay as it was.
template <typename T>
class Output {
 public:
  explicit Output(size_t count) : count_(count), values_(count + kBehind) {
    std::memset(values_.data(), 0xA5, values_.size() * sizeof(T));
  }
  T* data() { return values_.data(); }
  void expect(const std::vector<T>& wanted, const std::string& what) const {
    for (size_t i = 0; i < count_; ++i)
      if (std::memcmp(&wanted[i], &values_[i], sizeof(T)) != 0) fail(what, static_cast<int64_t>(i));
    const auto* behind = reinterpret_cast<const uint8_t*>(values_.data() + count_);
    for (size_t i = 0; i < kBehind * sizeof(T); ++i)
      if (behind[i] != 0xA5) fail("written past the end: " + what, static_cast<int64_t>(i));
  }

 private:
  static constexpr size_t kBehind = 512;
  size_t count_;
  std::vector<T> values_;
};

void set_bit(std::vector<Word>& words, const Case& c, int m, int n) {
  words[m * words_for(c.n) + n / 64] |= Word{1} << n % 64;
}

void run(const Case& c, const ConvArgs& args, const std::string& what) {
  const Kernel kernel{"", Family::kWgmma, 128, c.tile_n, 90, 90};
  if (gemm_wgmma(args, kernel, c.multiprocessors, nullptr) != cudaSuccess) fail("not launched: " + what, 0);
}

void check_int32(const Case& c, ConvArgs args, const std::vector<int>& dots) {
  Output<int> out(dots.size());
  args.epilogue = {.kind = EpilogueKind::kInt32, .out = out.data()};
  const std::string what = c.text("int32");
  run(c, args, what);
  out.expect(dots, what);
}

void check_bits(const Case& c, ConvArgs args, const std::vector<int>& dots) {
  std::vector<int32_t> threshold(c.n);
  for (int32_t& t : threshold) t = draws.one_in(8) ? one_of({INT32_MIN, INT32_MAX}) : dots[draws.below(dots.size())];
  Rows flip(1, c.n, words_for(c.n), true);
  const bool flips = coin();
  std::vector<Word> wanted(c.m * words_for(c.n));
  for (int m = 0; m < c.m; ++m)
    for (int n = 0; n < c.n; ++n)
      if ((dots[m * c.n + n] >= threshold[n]) != (flips && flip.data()[n / 64] >> n % 64 & 1)) set_bit(wanted, c, m, n);
  Output<Word> out(wanted.size());
  args.epilogue = {.kind = EpilogueKind::kBits,
                   .out = out.data(),
                   .threshold = threshold.data(),
                   .flip = flips ? flip.data() : nullptr};
  const std::string what = c.text("bits");
  run(c, args, what);
  out.expect(wanted, what);
}

template <typename T>
void check_float(const Case& c, ConvArgs args, const std::vector<int>& dots, FloatType type, const char* name) {
  const auto floats = [&] {
    std::vector<float> values(c.n);
    for (float& value : values) value = small_float();
    return values;
  };
  const std::vector<float> scale = floats(), bias = floats(), slope = floats(), cut = floats();
  std::vector<float> direction(c.n);
  for (float& d : direction) d = one_of({-1.0f, 1.0f});
  const bool adds = coin(), slopes = coin(), packs = coin();
  const int residual_channels = coin() ? c.n : (c.n + 1) / 2;  // fewer come round
  std::vector<T> residual(static_cast<size_t>(c.m) * residual_channels);
  for (T& r : residual) from_float(small_float(), r);

  std::vector<T> wanted(dots.size());
  std::vector<Word> wanted_bits(c.m * words_for(c.n));
  for (int m = 0; m < c.m; ++m)
    for (int n = 0; n < c.n; ++n) {
      const int at = m * c.n + n;
      float y = scale[n] * static_cast<float>(dots[at]) + bias[n];
      if (adds) y += to_float(residual[m * residual_channels + n % residual_channels]);
      if (slopes && !(y >= 0)) y *= slope[n];
      from_float(y, wanted[at]);
      if (direction[n] * to_float(wanted[at]) >= cut[n]) set_bit(wanted_bits, c, m, n);
    }

  Output<T> out(wanted.size());
  Output<Word> bits(wanted_bits.size());
  args.epilogue = {.kind = EpilogueKind::kFloat,
                   .type = type,
                   .out = out.data(),
                   .scale = scale.data(),
                   .bias = bias.data(),
                   .residual = adds ? residual.data() : nullptr,
                   .residual_channels = residual_channels,
                   .slope = slopes ? slope.data() : nullptr,
                   .packed = packs ? bits.data() : nullptr,
                   .cut = cut.data(),
                   .direction = direction.data()};
  const std::string what = c.text(name);
  run(c, args, what);
  out.expect(wanted, what);
  if (packs) bits.expect(wanted_bits, what + ", packed");
}

void check(const Case& c) {
  // Words of a pixel past the row are no part of the product, whatever they hold.
  Rows x(c.m, c.bits, c.pixel_words, true), w(c.n, c.bits, c.row_words, false);
  std::vector<int> dots;
  for (int m = 0; m < c.m; ++m)
    for (int n = 0; n < c.n; ++n) dots.push_back(dot_of(c, x.row(m), w.row(n)));
  std::vector<int32_t> ones(4 * c.n);  // a summed-area table of one tap
  for (int n = 0; n < c.n; ++n)
    for (int word = 0; word < c.words; ++word) ones[3 * c.n + n] += __popcll(w.row(n)[word]);

  ConvArgs args{};
  args.x = x.data(), args.w = w.data(), args.ones = ones.data();
  args.m = c.m, args.n = args.out_channels = c.n;
  args.height = args.width = args.out_height = args.out_width = 1;
  args.kernel_h = args.kernel_w = args.stride_h = args.stride_w = args.dilation_h = args.dilation_w = 1;
  args.groups = args.splits = 1;
  args.pixel_words = c.pixel_words, args.row_words = c.row_words;
  args.group_words = args.k_words = c.words, args.group_channels = c.bits;
  args.sign = c.sign, args.alpha = c.sign ? 4 : 2, args.beta = c.sign ? 2 : 1;
  args.wide_loads = true;
  args.wide_stores = c.n % 8 == 0;

  switch (draws.below(5)) {
    case 0: return check_int32(c, args, dots);
    case 1: return check_bits(c, args, dots);
    case 2: return check_float<float>(c, args, dots, FloatType::kFloat32, "float32");
    case 3: return check_float<__nv_bfloat16>(c, args, dots, FloatType::kBFloat16, "bfloat16");
    default: return check_float<__half>(c, args, dots, FloatType::kFloat16, "float16");
  }
}

}  // namespace
}  // namespace bitnas::cuda

int main(int argc, char** argv) {
  using namespace bitnas::cuda;
  if (argc != 3) return 2;
  draws = model::Random(std::strtoull(argv[1], nullptr, 10));
  for (int i = std::atoi(argv[2]); i > 0; --i) check(Case());
}
