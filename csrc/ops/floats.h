// The operators that end in floats or pack them, once for every device: checks and outputs.
#pragma once

#include "ops/dots.h"

namespace bitnas::ops {

// run_join(args, shortcut, cuts, packed) computes args, and packs the result by `cuts` where they are not null;
// run_pack(args, pixels, x) packs floats. Both on the device of their tensor.
template <void (*run_join)(const JoinArgs&, const Tensor& shortcut, const Cuts* cuts, Word* packed),
          void (*run_pack)(PackArgs, int64_t pixels, const Tensor& x)>
struct Floats {
  static Tensor pack_channels(const Tensor& x, const Tensor& threshold, const Tensor& direction) {
    PackArgs args = check_pack("pack_channels", x);
    const Cuts cuts = check_cuts("pack_channels", "threshold", threshold, direction, args.channels, x);
    Tensor out = empty_packed_like(x, &cuts);
    auto* words = static_cast<Word*>(out.mutable_data_ptr());
    const int64_t pixels = x.size(0) * args.plane;
    for (int64_t i = 0; i < cuts.count; ++i) {
      args.out = words + i * pixels * words_for(args.channels);
      args.thresholds = cuts.thresholds + i * args.channels, args.directions = cuts.directions + i * args.channels;
      run_pack(args, pixels, x);
    }
    return out;
  }

  static Tensor join_nodes(const Tensor& shortcut, const std::vector<Tensor>& nodes, int64_t live, int64_t groups,
                           int64_t channels, int64_t repeat, bool pool) {
    JoinArgs args = check_join("join_nodes", shortcut, nodes, {live, groups, channels, repeat, pool});
    Tensor out = empty_joined(args, shortcut);
    run_join(args, shortcut, nullptr, nullptr);
    return out;
  }

  static std::tuple<Tensor, Tensor> join_nodes_bits(const Tensor& shortcut, const std::vector<Tensor>& nodes,
                                                    const Tensor& cut, const Tensor& direction, int64_t live,
                                                    int64_t groups, int64_t channels, int64_t repeat, bool pool) {
    constexpr auto op = "join_nodes_bits";
    JoinArgs args = check_join(op, shortcut, nodes, {live, groups, channels, repeat, pool});
    const Cuts cuts = check_cuts(op, "cut", cut, direction, groups * channels, shortcut);
    Tensor out = empty_joined(args, shortcut);
    Tensor packed = empty_packed_like(out, &cuts);
    run_join(args, shortcut, &cuts, static_cast<Word*>(packed.mutable_data_ptr()));
    return {std::move(out), std::move(packed)};
  }

  template <typename Library>
  static void implement(Library& m) {
    m.impl("pack_channels", TORCH_BOX(&pack_channels));
    m.impl("join_nodes", TORCH_BOX(&join_nodes));
    m.impl("join_nodes_bits", TORCH_BOX(&join_nodes_bits));
  }
};

}  // namespace bitnas::ops
