// Philox on a CPU: many quads of one sample at once.
#pragma once
#include <cstdint>

#include "philox.h"

namespace robustfast {

// Quads drawn side by side, one to a vector lane. GCC unrolls shorter loops, and then does not vectorise them.
constexpr int kWide = 64;
constexpr int64_t kTile = 4 * kWide;

// The stream of quads of one sample.
struct Stream {
  PhiloxKey key;
  uint64_t index;

  // words[k][j]: the k-th word of quad first + j.
  inline void draw(uint32_t purpose, int64_t first, uint32_t (&words)[4][kWide]) const {
    for (int j = 0; j < kWide; ++j) {
      words[0][j] = static_cast<uint32_t>(first) + j;
      words[1][j] = purpose;
      words[2][j] = static_cast<uint32_t>(index);
      words[3][j] = static_cast<uint32_t>(index >> 32);
    }
    PhiloxKey round_key = key;
    for (int round = 0; round < kPhiloxRounds; ++round, round_key.next())
      for (int j = 0; j < kWide; ++j) philox_round(words[0][j], words[1][j], words[2][j], words[3][j], round_key);
  }
};

}  // namespace robustfast
