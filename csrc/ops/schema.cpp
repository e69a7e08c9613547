// Every operator of bitnas, on one page.
//
// Packed tensors are int64 (packing.h): images [N, H, W, words], rows [M, words],
// weights [out, kh, kw, words(in / groups)] or [out, words].
// `unit` false: activations are ±1; true: {0, 1}. Weights are always ±1.
// `prepared`: what prepare_weight gave for this weight on this machine; without it,
// or with one made for another kernel, the weight is prepared anew in every call.
//
// Schemas are flat (an int costs less per call than an int list), functional, and
// without autograd: training runs in float (bitnas.nn).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(bitnas, m) {
  // float32, bfloat16 or float16 [N, C, H, W] (contiguous or channels_last) or [M, K] -> packed.
  m.def("pack(Tensor x, float threshold) -> Tensor");
  // bit = direction[c] * x >= threshold[c]; both float32 [C]. Both [E, C]: x packed E times, [E, ...].
  m.def("pack_channels(Tensor x, Tensor threshold, Tensor direction) -> Tensor");
  // Packed [..., words] -> float32 [..., channels], ±1 or {0, 1}.
  m.def("unpack(Tensor packed, int channels, bool unit) -> Tensor");

  // Float convolution, ReLU or PReLU, and max pooling (1x1 of stride 1: none) on the CPU, rounded alike on all of them.
  // x float32 [N, C, H, W] (contiguous or channels_last), weight float32 [kh, kw, C, out] -> [N, out, H', W'] in
  // channels_last. With scale, float32 [out]: scale * (the sum without bias) + bias.
  m.def(
      "float_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride_h, int stride_w, int padding_h, int padding_w, "
      "bool relu, int pool_h, int pool_w, int pool_stride_h, int pool_stride_w, int pool_padding_h, "
      "int pool_padding_w, Tensor? scale=None, Tensor? slope=None) -> Tensor");
  // The same (empty where `floats` is false), and what pack_channels(floats, cut, direction) gives.
  m.def(
      "float_conv2d_bits(Tensor x, Tensor weight, Tensor? bias, Tensor cut, Tensor direction, bool floats, "
      "int stride_h, int stride_w, int padding_h, int padding_w, bool relu, int pool_h, int pool_w, int pool_stride_h, "
      "int pool_stride_w, int pool_padding_h, int pool_padding_w, Tensor? scale=None, Tensor? slope=None) "
      "-> (Tensor, Tensor)");

  // For the kernel that this machine's dispatch chooses; `positions`: output positions of one call, 0 where unknown.
  m.def(
      "prepare_weight(Tensor weight, int in_channels, int groups, int stride_h=1, int stride_w=1, int dilation_h=1, "
      "int dilation_w=1, int positions=0) -> Tensor");
  // Name of the kernel that a weight was prepared for; "" where that is not to be told.
  m.def("prepared_kernel(Tensor prepared) -> str");

  // int32 dot products, [N, out, H', W'] channels last.
  m.def(
      "conv2d_int32(Tensor x, Tensor weight, Tensor? prepared, int in_channels, int stride_h, int stride_w, "
      "int padding_h, int padding_w, int dilation_h, int dilation_w, int groups, bool unit) -> Tensor");
  // scale * dot + bias, then ReLU where asked for, then + residual and PReLU where given; scale, bias and slope float32
  // [out]. residual is [N, out, H', W'] in channels_last and in the output's dtype: float32 (None), bfloat16 or
  // float16. It may have fewer channels, which then repeat: channel n adds the residual's n modulo its channels.
  m.def(
      "conv2d_float(Tensor x, Tensor weight, Tensor? prepared, Tensor scale, Tensor bias, int in_channels, "
      "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int groups, "
      "bool unit, Tensor? residual=None, Tensor? slope=None, ScalarType? dtype=None, bool relu=False) -> Tensor");
  // The same, and what pack_channels(floats, cut, direction) gives.
  m.def(
      "conv2d_float_bits(Tensor x, Tensor weight, Tensor? prepared, Tensor scale, Tensor bias, Tensor cut, "
      "Tensor direction, int in_channels, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, "
      "int dilation_w, int groups, bool unit, Tensor? residual=None, Tensor? slope=None, ScalarType? dtype=None, "
      "bool relu=False) -> (Tensor, Tensor)");
  // Packed (dot >= threshold) XOR flip; threshold int32 [out], flip int64 [words(out)].
  m.def(
      "conv2d_bits(Tensor x, Tensor weight, Tensor? prepared, Tensor threshold, Tensor? flip, int in_channels, "
      "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int groups, "
      "bool unit) -> Tensor");

  // The same for rows: [M, words] by [out, words] -> [M, out].
  m.def("linear_int32(Tensor x, Tensor weight, Tensor? prepared, int in_features, bool unit) -> Tensor");
  m.def(
      "linear_float(Tensor x, Tensor weight, Tensor? prepared, Tensor scale, Tensor bias, int in_features, "
      "bool unit, Tensor? residual=None, Tensor? slope=None, ScalarType? dtype=None) -> Tensor");
  m.def(
      "linear_bits(Tensor x, Tensor weight, Tensor? prepared, Tensor threshold, Tensor? flip, int in_features, "
      "bool unit) -> Tensor");

  // OR over windows of packed images, then XOR flip.
  m.def(
      "max_pool2d_bits(Tensor x, Tensor? flip, int kernel_h, int kernel_w, int stride_h, int stride_w, "
      "int padding_h, int padding_w) -> Tensor");

  // The end of a cell: a shortcut, fitted to `groups` groups of `channels`, plus a node for each bit of `live` that is
  // one; join.h has the formula. float32 in channels_last: shortcut [N, groups * own, H, W], nodes and the output
  // [N, channels, H', W'] and [N, groups * channels, H', W'] with H' = H, or ceil(H / 2) where it pools.
  m.def(
      "join_nodes(Tensor shortcut, Tensor[] nodes, int live, int groups, int channels, int repeat, bool pool) "
      "-> Tensor");
  // The same, and what pack_channels(floats, cut, direction) gives.
  m.def(
      "join_nodes_bits(Tensor shortcut, Tensor[] nodes, Tensor cut, Tensor direction, int live, int groups, "
      "int channels, int repeat, bool pool) -> (Tensor, Tensor)");

  // Comma-separated names this CPU can run, slowest first; the one in use; choose another (false: cannot).
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("select_cpu_isa(str name) -> bool");
  // The same of kernels; a name also chooses its instruction set, "auto" leaves the choice to the layer's shape again.
  m.def("cpu_kernels() -> str");
  m.def("select_cpu_kernel(str name) -> bool");
  // Comma-separated names of the kernels the current GPU can run; use one wherever it computes the layer, or "auto".
  m.def("cuda_kernels() -> str");
  m.def("select_cuda_kernel(str name) -> bool");
}
