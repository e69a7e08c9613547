// Runs the machine code of tile instructions on a CPU without AMX: each of them raises SIGILL, and the handler decodes
// it and carries it out on the model of the tile unit (csrc/kernels/cpu/amx_model.h). Slow, 1 to 2 us an instruction,
// but what runs are the very bytes that a CPU with AMX gets.
#pragma once

#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/amx_model.h"

namespace amx_trap {

namespace model = bitnas::cpu::amx::model;

inline int64_t register_value(const mcontext_t& machine, int number) {
  constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return machine.gregs[kOrder[number]];
}

// Bytes of the instruction at `code` after carrying it out; 0 where it is none of the tile unit's. All of them are
// VEX.128.W0 of opcode map 0F38: C4, RXB and map, W vvvv L pp, opcode, ModRM, then SIB and displacement.
inline int64_t execute(const uint8_t* code, const mcontext_t& machine) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return 0;
  const int extend_index = (code[1] & 0x40) != 0 ? 0 : 8, extend_base = (code[1] & 0x20) != 0 ? 0 : 8;
  const int third = ~code[2] >> 3 & 15, prefix = code[2] & 3;  // 0: none, 1: 66, 2: F3, 3: F2
  const int opcode = code[3], mode = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
  const bool on_memory = mode != 3;
  int64_t length = 5, base = 0, index = 0;
  if (on_memory) {
    int base_number = rm;
    if (rm == 4) {
      const int sib = code[length++], index_number = (sib >> 3 & 7) + extend_index;
      base_number = sib & 7;
      if (index_number != 4) index = register_value(machine, index_number) << (sib >> 6);
    }
    if (mode == 0 && (base_number & 7) == 5) return 0;  // relative to nothing or to the instruction: not used
    base = register_value(machine, base_number + extend_base);
    if (mode == 1) base += static_cast<int8_t>(code[length++]);
    if (mode == 2) {
      int32_t displacement;
      std::memcpy(&displacement, code + length, 4);
      base += displacement;
      length += 4;
    }
  }
  auto* at = reinterpret_cast<void*>(base);
  if (opcode == 0x49 && prefix == 0 && on_memory && reg == 0) {
    model::load_config(at);
  } else if (opcode == 0x49 && prefix == 0 && code[4] == 0xc0) {
    model::release();
  } else if (opcode == 0x49 && prefix == 3 && !on_memory && rm == 0) {
    model::zero(reg);
  } else if (opcode == 0x4b && prefix == 3 && on_memory) {
    model::load(reg, at, index);
  } else if (opcode == 0x4b && prefix == 2 && on_memory) {
    model::store(reg, at, index);
  } else if (opcode == 0x5e && prefix == 3 && !on_memory) {
    model::multiply_add(reg, rm, third);
  } else {
    return 0;
  }
  return length;
}

inline void on_illegal_instruction(int, siginfo_t*, void* context) {
  mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  const auto* code = reinterpret_cast<const uint8_t*>(machine.gregs[REG_RIP]);
  const int64_t length = execute(code, machine);
  if (length == 0) {
    std::fprintf(stderr, "AMX trap: not an instruction of the tile unit: %02x %02x %02x %02x %02x\n", code[0], code[1],
                 code[2], code[3], code[4]);
    std::abort();
  }
  machine.gregs[REG_RIP] += length;
}

inline void install() {
  struct sigaction action{};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace amx_trap
