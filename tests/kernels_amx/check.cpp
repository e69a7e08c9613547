// The AMX convolutions on the model of the tile unit (csrc/kernels/cpu/amx_model.h), against plain loops.
//
//   check KERNEL SEED COUNT   draws COUNT layers and compares every output, bit for bit; exits with 1 at the first that
//                             is wrong. Every buffer begins or ends at a page that faults; scratch is garbage; tasks of
//                             one to five threads run in any order, with somebody else's tiles configured before them.
//   check spoil KERNEL SEED   the check itself: in each of 100 layers the tile unit once adds one too many. Prints how
//                             many of these the comparison saw.
//   check misuse WHAT         uses the tile unit as the model must refuse: it ends the process.
//   check permission          1 or 0: what amx_permitted() says, twice
//
// Built with BITNAS_AMX_MODEL, the kernels call the model. Built without, they are what a release holds: on a CPU with
// AMX they run on it, else their tile instructions are trapped and carried out by the model (amx_trap.h).
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "amx_trap.h"
#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_model.h"
#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/finish.h"
#include "kernels/cpu/kernel.h"

namespace bitnas::cpu {

extern const TileKernel amx_direct, amx_bits, amx_winograd1d, amx_winograd2d;

namespace {

std::mt19937_64 generator;

int64_t below(int64_t count) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(count)); }
int64_t between(int64_t least, int64_t most) { return least + below(most - least + 1); }
bool one_in(int64_t count) { return below(count) == 0; }

template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[below(static_cast<int64_t>(values.size()))];
}

// ---- memory -------------------------------------------------------------------

// Values that begin or end at a page that can be neither read nor written; garbage around and, at first, within.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count, int64_t alignment = alignof(T)) : count_(count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    inner_ = (bytes + page - 1) / page * page;
    area_ = mmap(nullptr, inner_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_ = inner_ + 2 * page;
    begin_ = static_cast<uint8_t*>(area_) + page;
    if (area_ == MAP_FAILED || (inner_ != 0 && mprotect(begin_, inner_, PROT_READ | PROT_WRITE) != 0)) {
      std::perror("guarded memory");
      std::exit(2);
    }
    fill_ = static_cast<uint8_t>(below(256));
    std::memset(begin_, fill_, inner_);
    const size_t room = (inner_ - bytes) / alignment * alignment;
    data_ = begin_ + (one_in(2) ? room : 0);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(area_, size_); }

  T* data() { return reinterpret_cast<T*>(data_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  void fill(uint8_t value) { std::memset(data_, value, static_cast<size_t>(bytes())); }
  bool untouched_around() const {
    const auto clean = [this](const uint8_t* from, const uint8_t* to) {
      return std::all_of(from, to, [this](uint8_t byte) { return byte == fill_; });
    };
    return clean(begin_, data_) && clean(data_ + bytes(), begin_ + inner_);
  }

 private:
  int64_t count_;
  void* area_;
  size_t size_, inner_;
  uint8_t *begin_, *data_;
  uint8_t fill_;
};

// ---- layers --------------------------------------------------------------------

struct Layer {
  const char* kernel_name;
  const TileKernel* kernel;
  Conv2dShape shape;

  std::string text() const {
    const Conv2dShape& s = shape;
    char line[400];
    std::snprintf(line, sizeof line,
                  "%s: %" PRId64 " images of %" PRId64 "x%" PRId64 ", %" PRId64 " to %" PRId64 " channels in %" PRId64
                  " groups, kernel %" PRId64 "x%" PRId64 ", stride %" PRId64 ",%" PRId64 ", padding %" PRId64
                  ",%" PRId64 ", dilation %" PRId64 ",%" PRId64 ", %s, cache %" PRId64,
                  kernel_name, s.images, s.height, s.width, s.channels, s.out_channels, s.groups, s.kernel_h,
                  s.kernel_w, s.stride_h, s.stride_w, s.padding_h, s.padding_w, s.dilation_h, s.dilation_w,
                  s.encoding == Encoding::kSign ? "sign" : "unit", amx::model::cache_bytes);
    return line;
  }
};

int64_t random_channels() {
  if (one_in(3)) return between(1, 130);
  if (one_in(4)) return between(131, 600);
  return one_of<int64_t>({1, 3, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 256, 257, 320});
}

int64_t outputs(int64_t size, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t room = size + 2 * padding - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

Layer random_layer(const char* name, const TileKernel* kernel) {
  const bool winograd = kernel == &amx_winograd1d || kernel == &amx_winograd2d;
  for (;;) {
    Conv2dShape s{};
    s.groups = one_in(3) ? between(2, 4) : 1;
    const bool words = one_in(3) || (winograd && s.groups > 1);
    s.channels = s.groups * (words ? 64 * between(1, 5) : random_channels());
    s.out_channels = s.groups * (one_in(4) ? 32 * between(1, 6) : random_channels());
    if (s.channels > 700 || s.out_channels > 700) continue;
    s.images = one_in(4) ? between(0, 4) : one_in(4) ? between(5, 12) : between(1, 2);
    s.height = between(1, 20), s.width = between(1, 20);
    if (s.images > 4) s.height = between(1, 3);
    s.kernel_h = s.kernel_w = 3;
    s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
    s.padding_h = between(0, 2), s.padding_w = between(0, 2);
    if (kernel != &amx_winograd2d && one_in(2)) s.kernel_h = between(1, 5);
    if (kernel == &amx_winograd1d) s.dilation_h = one_in(4) ? between(2, 3) : 1;
    if (!winograd) {
      if (one_in(4)) s.kernel_h = s.kernel_w = 1, s.padding_h = s.padding_w = 0;  // a linear layer
      if (one_in(2)) s.kernel_w = between(1, 5);
      if (one_in(3)) s.stride_h = between(1, 3), s.stride_w = between(1, 3);
      if (one_in(3)) s.dilation_h = between(1, 3), s.dilation_w = one_in(3) ? s.stride_w : between(1, 3);
    }
    if (one_in(6)) s.padding_h = between(0, 7), s.padding_w = between(0, 7);
    s.encoding = one_in(2) ? Encoding::kSign : Encoding::kUnit;
    s.out_height = outputs(s.height, s.padding_h, s.kernel_h, s.stride_h, s.dilation_h);
    s.out_width = outputs(s.width, s.padding_w, s.kernel_w, s.stride_w, s.dilation_w);
    if (s.out_height == 0 || s.out_width == 0 || !kernel->computes(s)) continue;
    const int64_t products =
        s.images * s.out_height * s.out_width * (s.out_channels + 16) * s.taps() * (s.group_channels() + 32);
    if (products > (one_in(8) ? 200'000'000 : 20'000'000)) continue;
    amx::model::cache_bytes = int64_t{1} << one_of({12, 14, 16, 18, 21});
    return {name, kernel, s};
  }
}

// ---- the definition --------------------------------------------------------------

// `count` bits from `first` on as words of their own.
std::vector<Word> slice(const Word* words, int64_t first, int64_t count) {
  std::vector<Word> out(words_for(count));
  for (int64_t i = 0; i < count; ++i) out[i / 64] |= (words[(first + i) / 64] >> (first + i) % 64 & 1) << i % 64;
  return out;
}

// kernels/conv2d.h to the letter where there is little to compute; by popcounts of words, and of at most three loops
// fewer, elsewhere.
std::vector<int32_t> plain_dots(const Conv2dShape& s, const Word* x, const Word* weight) {
  const int64_t channels = s.group_channels(), words = words_for(channels), pixel_words = words_for(s.channels);
  std::vector<Word> inputs(s.images * s.height * s.width * s.groups * words);
  for (int64_t p = 0; p < s.images * s.height * s.width; ++p) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const std::vector<Word> part = slice(x + p * pixel_words, g * channels, channels);
      std::copy(part.begin(), part.end(), inputs.begin() + (p * s.groups + g) * words);
    }
  }
  const bool sign = s.encoding == Encoding::kSign;
  const bool letter = s.images * s.out_height * s.out_width * s.out_channels * s.taps() * channels < 300'000;
  std::vector<int32_t> dots;
  dots.reserve(s.images * s.out_height * s.out_width * s.out_channels);
  for (int64_t i = 0; i < s.images; ++i)
    for (int64_t oy = 0; oy < s.out_height; ++oy)
      for (int64_t ox = 0; ox < s.out_width; ++ox)
        for (int64_t n = 0; n < s.out_channels; ++n) {
          int64_t dot = 0;
          for (int64_t ky = 0; ky < s.kernel_h; ++ky)
            for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
              const int64_t y = oy * s.stride_h - s.padding_h + ky * s.dilation_h;
              const int64_t at = ox * s.stride_w - s.padding_w + kx * s.dilation_w;
              if (y < 0 || y >= s.height || at < 0 || at >= s.width) continue;
              const int64_t group = n / s.group_out_channels();
              const Word* a = inputs.data() + (((i * s.height + y) * s.width + at) * s.groups + group) * words;
              const Word* w = weight + ((n * s.kernel_h + ky) * s.kernel_w + kx) * words;
              if (letter) {
                for (int64_t c = 0; c < channels; ++c) {
                  const bool bit = a[c / 64] >> c % 64 & 1, plus = w[c / 64] >> c % 64 & 1;
                  dot += (bit ? 1 : sign ? -1 : 0) * (plus ? 1 : -1);
                }
                continue;
              }
              int64_t differing = 0, plus = 0, ones = 0;
              for (int64_t word = 0; word < words; ++word) {
                differing += __builtin_popcountll(a[word] ^ w[word]);
                plus += __builtin_popcountll(a[word] & w[word]);
                ones += __builtin_popcountll(a[word]);
              }
              dot += sign ? channels - 2 * differing : 2 * plus - ones;
            }
          dots.push_back(static_cast<int32_t>(dot));
        }
  return dots;
}

// ---- one layer, computed --------------------------------------------------------

void random_words(Guarded<Word>& words, int64_t bits) {
  const int64_t per_pixel = words_for(bits);
  for (int64_t i = 0; i < words.size(); ++i) {
    const int64_t left = bits - i % per_pixel * 64;
    words[i] = generator() & (left >= 64 ? ~Word{0} : (Word{1} << left) - 1);
  }
}

void random_floats(Guarded<float>& values) {
  constexpr float kSpecial[] = {0.0f, -0.0f, 1e30f, -1e30f, 3e38f, 1e-42f, __builtin_inff(), __builtin_nanf("")};
  for (int64_t i = 0; i < values.size(); ++i)
    values[i] = one_in(50) ? kSpecial[below(std::size(kSpecial))] : static_cast<float>(between(-400, 400)) / 64;
}

// Somebody else's use of the tile unit, on this thread, before a task.
void meddle() {
  amx::Config foreign{};
  if (one_in(3)) return amx::release();
  foreign.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    foreign.rows[tile] = static_cast<uint8_t>(between(1, 16));
    foreign.row_bytes[tile] = static_cast<uint16_t>(4 * between(1, 16));
  }
  amx::load_config(foreign);
}

struct Counts {
  int64_t layers = 0, tasks = 0, outputs = 0;
};

class Computed {
 public:
  Computed(const Layer& layer, EpilogueKind kind)
      : layer_(layer),
        s_(layer.shape),
        pixels_(s_.images * s_.out_height * s_.out_width),
        n_(s_.out_channels),
        x_(s_.images * s_.height * s_.width * words_for(s_.channels)),
        weight_(s_.out_channels * s_.taps() * words_for(s_.group_channels())),
        prepared_(layer.kernel->weight_bytes(s_), 64),
        scale_(n_),
        bias_(n_),
        slope_(n_),
        cut_(n_),
        direction_(n_),
        threshold_(n_),
        flip_(words_for(n_)) {
    random_words(x_, s_.channels);
    random_words(weight_, s_.group_channels());
    layer_.kernel->prepare(s_, weight_.data(), prepared_.data());
    dots_ = plain_dots(s_, x_.data(), weight_.data());
    type_ = one_of({FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16});
    const int64_t value_bytes = kind != EpilogueKind::kFloat || type_ == FloatType::kFloat32 ? 4 : 2;
    const int64_t out_bytes = kind == EpilogueKind::kBits ? pixels_ * words_for(n_) * 8 : pixels_ * n_ * value_bytes;
    const int64_t alignment = kind == EpilogueKind::kBits ? 8 : value_bytes;
    out_ = std::make_unique<Guarded<uint8_t>>(out_bytes, alignment);
    epilogue_.kind = kind;
    epilogue_.type = type_;
    epilogue_.out = out_->data();
    if (kind == EpilogueKind::kBits) use_thresholds();
    if (kind == EpilogueKind::kFloat) use_floats();
  }

  // "" or what is wrong. The check for tasks that write the same byte runs all tasks more often.
  std::string check(Counts& counts, bool independence = true) {
    const int64_t threads = one_in(3) ? 1 : between(1, 5);
    const Conv2dArgs args{s_, x_.data(), epilogue_};
    const int64_t tasks = layer_.kernel->tasks(args, threads);
    if (pixels_ == 0) return tasks == 0 ? "" : "tasks of an empty layer";
    if (tasks < 1 || tasks > threads) return "so many tasks: " + std::to_string(tasks);
    if (independence && tasks > 1 && one_in(3) && !independent(args, tasks)) return "two tasks write the same byte";
    std::vector<int64_t> order(tasks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), generator);
    for (const int64_t task : order) {
      run(args, task, tasks);
      if (amx::model::configured()) return "a task left the tile unit configured";
    }
    ++counts.layers;
    counts.tasks += tasks;
    counts.outputs += pixels_ * n_;
    return compare();
  }

 private:
  void use_thresholds() {
    for (int64_t i = 0; i < n_; ++i) {
      const int32_t dot = dots_.empty() ? 0 : dots_[below(static_cast<int64_t>(dots_.size()))];
      threshold_[i] = one_in(8) ? one_of({INT32_MIN, INT32_MAX, INT32_MIN + 1}) : dot + static_cast<int32_t>(below(2));
    }
    epilogue_.threshold = threshold_.data();
    random_words(flip_, one_in(2) ? n_ : 64 * words_for(n_));  // whatever flip has past the last channel
    if (one_in(2)) epilogue_.flip = flip_.data();
  }

  void use_floats() {
    for (Guarded<float>* values : {&scale_, &bias_, &slope_, &cut_}) random_floats(*values);
    for (int64_t i = 0; i < n_; ++i) direction_[i] = one_of({1.0f, -1.0f});
    epilogue_.scale = scale_.data();
    epilogue_.bias = bias_.data();
    const int64_t value_bytes = type_ == FloatType::kFloat32 ? 4 : 2;
    if (one_in(2)) {
      const int64_t channels = one_in(3) ? 1 + below(n_) : n_;  // fewer come round
      residual_ = std::make_unique<Guarded<uint8_t>>(pixels_ * channels * value_bytes, value_bytes);
      for (int64_t i = 0; i < pixels_ * channels; ++i) {
        const float value = static_cast<float>(between(-400, 400)) / 64;
        const uint16_t half = type_ == FloatType::kFloat16 ? float_to_half(value) : float_to_bfloat16(value);
        if (value_bytes == 4) std::memcpy(residual_->data() + i * 4, &value, 4);
        if (value_bytes == 2) std::memcpy(residual_->data() + i * 2, &half, 2);
      }
      epilogue_.residual = residual_->data();
      epilogue_.residual_channels = channels;
    }
    if (one_in(2)) epilogue_.slope = slope_.data();
    if (one_in(2)) {
      packed_ = std::make_unique<Guarded<Word>>(pixels_ * words_for(n_));
      epilogue_.packed = packed_->data();
      epilogue_.cut = cut_.data();
      epilogue_.direction = direction_.data();
    }
  }

  void run(const Conv2dArgs& args, int64_t task, int64_t tasks) {
    Guarded<uint8_t> scratch(layer_.kernel->scratch_bytes(args, tasks), 64);
    meddle();
    layer_.kernel->run(args, prepared_.data(), task, tasks, scratch.data());
    intact_ = intact_ && scratch.untouched_around();
  }

  // Every byte of the output is written by exactly one task: seen by what changes over zeros and over ones.
  bool independent(const Conv2dArgs& args, int64_t tasks) {
    std::vector<uint8_t> owners(out_->bytes()), packed_owners(packed_ ? packed_->bytes() : 0);
    for (int64_t task = 0; task < tasks; ++task) {
      std::vector<bool> wrote(owners.size()), wrote_packed(packed_owners.size());
      for (const uint8_t background : {0x00, 0xff}) {
        out_->fill(background);
        if (packed_) packed_->fill(background);
        run(args, task, tasks);
        for (size_t i = 0; i < owners.size(); ++i)
          if (out_->data()[i] != background) wrote[i] = true;
        const auto* packed = packed_ ? reinterpret_cast<const uint8_t*>(packed_->data()) : nullptr;
        for (size_t i = 0; i < packed_owners.size(); ++i)
          if (packed[i] != background) wrote_packed[i] = true;
      }
      for (size_t i = 0; i < owners.size(); ++i) owners[i] += wrote[i];
      for (size_t i = 0; i < packed_owners.size(); ++i) packed_owners[i] += wrote_packed[i];
    }
    const auto one = [](uint8_t count) { return count == 1; };
    return std::all_of(owners.begin(), owners.end(), one) &&
           std::all_of(packed_owners.begin(), packed_owners.end(), one);
  }

  std::string compare() {
    if (!intact_ || !out_->untouched_around() || (packed_ && !packed_->untouched_around())) return "written outside";
    std::vector<uint8_t> wanted(out_->bytes());
    std::vector<Word> wanted_bits(pixels_ * words_for(n_));
    Epilogue e = epilogue_;
    e.out = wanted.data();
    for (int64_t p = 0; p < pixels_; ++p) {
      for (int64_t n = 0; n < n_; ++n) {
        const int32_t dot = dots_[p * n_ + n];
        bool bit = false;
        if (e.kind == EpilogueKind::kInt32) std::memcpy(wanted.data() + (p * n_ + n) * 4, &dot, 4);
        if (e.kind == EpilogueKind::kFloat) bit = finish_float(e, n_, p, n, dot);
        if (e.kind == EpilogueKind::kBits)
          bit = (dot >= e.threshold[n]) != (e.flip != nullptr && (e.flip[n / 64] >> n % 64 & 1) != 0);
        if (bit) wanted_bits[p * words_for(n_) + n / 64] |= Word{1} << n % 64;
      }
    }
    if (e.kind == EpilogueKind::kBits) std::memcpy(wanted.data(), wanted_bits.data(), wanted.size());
    const int64_t element = static_cast<int64_t>(wanted.size()) / std::max<int64_t>(1, elements());
    for (int64_t i = 0; i < elements(); ++i)
      if (!same(wanted.data() + i * element, out_->data() + i * element)) return where("out", i);
    if (packed_)
      for (int64_t i = 0; i < packed_->size(); ++i)
        if ((*packed_)[i] != wanted_bits[i]) return where("packed word", i);
    return "";
  }

  int64_t elements() const { return epilogue_.kind == EpilogueKind::kBits ? pixels_ * words_for(n_) : pixels_ * n_; }

  // To the bit; but one NaN is as good as another.
  bool same(const uint8_t* wanted, const uint8_t* got) const {
    const bool floats = epilogue_.kind == EpilogueKind::kFloat;
    if (!floats || type_ != FloatType::kFloat32) {
      const bool half = floats && type_ == FloatType::kFloat16;
      const size_t bytes = epilogue_.kind == EpilogueKind::kBits ? 8 : floats ? 2 : 4;
      if (!half || std::memcmp(wanted, got, bytes) == 0) return std::memcmp(wanted, got, bytes) == 0;
      uint16_t a, b;
      std::memcpy(&a, wanted, 2);
      std::memcpy(&b, got, 2);
      return (a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00;
    }
    float a, b;
    std::memcpy(&a, wanted, 4);
    std::memcpy(&b, got, 4);
    return std::memcmp(wanted, got, 4) == 0 || (a != a && b != b);
  }

  std::string where(const char* what, int64_t index) const {
    const char* kinds[] = {"int32", "float", "bits"};
    return std::string(what) + " " + std::to_string(index) + " of " + kinds[static_cast<int>(epilogue_.kind)] +
           " output";
  }

  Layer layer_;
  Conv2dShape s_;
  int64_t pixels_, n_;
  Guarded<Word> x_, weight_;
  Guarded<uint8_t> prepared_;
  Guarded<float> scale_, bias_, slope_, cut_, direction_;
  Guarded<int32_t> threshold_;
  Guarded<Word> flip_;
  std::unique_ptr<Guarded<uint8_t>> out_, residual_;
  std::unique_ptr<Guarded<Word>> packed_;
  std::vector<int32_t> dots_;
  FloatType type_;
  Epilogue epilogue_{};
  bool intact_ = true;
};

// ---- what the program does ---------------------------------------------------------

struct Named {
  const char* name;
  const TileKernel* kernel;
};

const Named& kernel_named(const char* name) {
  static const Named kernels[] = {
      {"direct", &amx_direct}, {"bits", &amx_bits}, {"winograd1d", &amx_winograd1d}, {"winograd2d", &amx_winograd2d}};
  for (const Named& named : kernels)
    if (std::strcmp(named.name, name) == 0) return named;
  std::fprintf(stderr, "no kernel '%s': direct, bits, winograd1d or winograd2d\n", name);
  std::exit(2);
}

int check(const Named& named, int64_t count) {
  Counts counts;
  for (int64_t i = 0; i < count; ++i) {
    const Layer layer = random_layer(named.name, named.kernel);
    const auto kind = one_of({EpilogueKind::kInt32, EpilogueKind::kFloat, EpilogueKind::kBits});
    const std::string wrong = Computed(layer, kind).check(counts);
    if (wrong.empty()) continue;
    std::fprintf(stderr, "%s: %s\n", layer.text().c_str(), wrong.c_str());
    return 1;
  }
  std::printf("%" PRId64 " layers, %" PRId64 " tasks, %" PRId64 " outputs\n", counts.layers, counts.tasks,
              counts.outputs);
  return 0;
}

int spoil(const Named& named) {
  int64_t seen = 0;
  for (int layers = 0; layers < 100;) {
    const Layer layer = random_layer(named.name, named.kernel);
    if (layer.shape.images == 0) continue;
    Computed computed(layer, EpilogueKind::kInt32);
    amx::model::spoil(0, 0, 0);  // the first position of a block, and its first channel: never padding
    Counts counts;
    seen += computed.check(counts, false).empty() ? 0 : 1;
    ++layers;
  }
  std::printf("%" PRId64 "\n", seen);
  return 0;
}

int misuse(const std::string& what) {
  alignas(64) static uint8_t bytes[amx::kTileBytes];
  if (what == "unconfigured") amx::load<0>(bytes, 64);
  amx::configure();
  if (what == "foreign") {
    amx::Config half{};
    half.palette = 1;
    for (int tile = 0; tile < 8; ++tile) half.rows[tile] = 8, half.row_bytes[tile] = 32;
    amx::load_config(half);
    amx::zero<0>();
  }
  if (what == "unknown") {
    amx::load<4>(bytes, 64);
    amx::load<6>(bytes, 64);
    amx::multiply_add<0, 4, 6>();
  }
  if (what == "released") {
    amx::zero<0>();
    amx::release();
    amx::store<0>(bytes, 64);
  }
  if (what == "illegal") {
    amx::Config tall{};
    tall.palette = 1;
    tall.rows[0] = 17, tall.row_bytes[0] = 64;
    amx::load_config(tall);
  }
  return 0;
}

}  // namespace
}  // namespace bitnas::cpu

int main(int argc, char** argv) {
  using namespace bitnas::cpu;
  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "permission" && argc == 2) {
    std::printf("%d %d\n", amx_permitted(), amx_permitted());
    return 0;
  }
#if !defined(BITNAS_AMX_MODEL)
  if (!amx_permitted()) amx_trap::install();
#endif
  if (first == "misuse" && argc == 3) return misuse(argv[2]);
  if (first == "spoil" && argc == 4) {
    generator.seed(std::strtoull(argv[3], nullptr, 10));
    return spoil(kernel_named(argv[2]));
  }
  if (argc != 4) {
    std::fputs("usage: check KERNEL SEED COUNT | spoil KERNEL SEED | misuse WHAT | permission\n", stderr);
    return 2;
  }
  generator.seed(std::strtoull(argv[2], nullptr, 10));
  return check(kernel_named(argv[1]), std::atoll(argv[3]));
}
