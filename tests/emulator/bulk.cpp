// cp.async.bulk, cp.reduce.async.bulk and their tensor forms (TMA): boxes of a tensor, or bytes in a row, between global
// and shared memory.
//
// A copy is a list of chunks: 16 bytes of shared memory each, whose place a tensor map's swizzle decides, and which are
// inside the tensor or partly outside. A load's bytes are read when it is issued and arrive later, with complete_tx at
// its mbarrier; its target holds poison meanwhile. A store's bytes are read and written at its wait.
#include <algorithm>
#include <cstring>
#include <limits>

#include "access.h"
#include "builder.h"
#include "lanes.h"
#include "number.h"
#include "tensor_map.h"

namespace emulator {

namespace {

constexpr uint32_t kChunk = 16;
constexpr uint32_t kTileAlign = 128;  // of a box in shared memory

bool at_random(Run &run) { return run.options.copies == Copies::kRandom && run.random() % 4 == 0; }

// ---- Where the bytes are

// The map at a generic address, which may be one of the kernel's parameters.
std::optional<TensorMap> map_at(Warp &w, const AddressOperand &operand, int lane) {
  uint64_t addresses[kLanes];
  lane_addresses(w, operand.base, operand.offset, addresses);
  const uint64_t address = addresses[lane];
  const bool is_parameter = (address & kWindowMask) == kParamWindow;
  const uint64_t offset = address & ~kWindowMask;
  constexpr uint64_t kBytes = 128, kAlign = 64;
  TensorMap map;
  map.magic = 0;
  if (address % kAlign != 0) {
    w.run->report(w, Kind::kMisaligned, lane, "a tensor map at an address that isn't a multiple of 64");
    return std::nullopt;
  }
  if (is_parameter && offset + kBytes <= w.run->kernel.parameter_bytes) {
    std::memcpy(&map, w.run->parameters.data() + offset, sizeof map);
  } else if (!is_parameter && w.run->buffers.find(address, kBytes) != nullptr) {
    std::memcpy(&map, reinterpret_cast<const void *>(address), sizeof map);
  }
  if (map.magic == TensorMap::kMagic) return map;
  w.run->report(w, Kind::kOutOfBounds, lane, "there is no tensor map at this address");
  return std::nullopt;
}

// The chunks of a box whose first element has these coordinates, at an offset in shared memory.
std::vector<Chunk> chunks_of(const TensorMap &map, const int64_t *first, uint32_t offset) {
  std::vector<Chunk> chunks;
  const int64_t element = map.element_bytes(), in_chunk = kChunk / element, size0 = int64_t{map.last[0]} + 1;
  uint32_t index[TensorMap::kMostDimensions] = {};
  for (uint32_t at = 0;;) {
    bool inside = true;
    uint64_t row = map.address;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t x = first[d] + int64_t{index[d]} * map.steps[d];
      inside = inside && x >= 0 && x <= int64_t{map.last[d]};
      row += static_cast<uint64_t>(x) * map.strides[d];
    }
    for (int64_t x = first[0]; x < first[0] + map.box[0]; x += in_chunk, at += kChunk) {
      const int64_t begin = std::clamp<int64_t>(-x, 0, in_chunk), end = std::clamp<int64_t>(size0 - x, 0, in_chunk);
      const bool any = inside && begin < end;
      const uint32_t address = swizzled(static_cast<uint32_t>(kSharedStart) + offset + at, map.swizzle);
      chunks.push_back({address - static_cast<uint32_t>(kSharedStart), static_cast<uint8_t>(any ? begin * element : 0),
                        static_cast<uint8_t>(any ? end * element : 0), row + static_cast<uint64_t>(x * element)});
    }
    int d = 1;
    while (d < map.rank && ++index[d] == map.extent(d)) index[d++] = 0;
    if (d >= map.rank) return chunks;
  }
}

// Parts of a chunk's global bytes that are aligned accesses.
template <class Visit>
void each_piece(const Chunk &chunk, Visit visit) {
  uint64_t address = chunk.global + chunk.begin;
  for (uint64_t left = chunk.end - chunk.begin; left > 0;) {
    uint64_t bytes = kChunk;
    while (bytes > left || address % bytes != 0) bytes /= 2;
    visit(address, static_cast<int>(bytes));
    address += bytes;
    left -= bytes;
  }
}

// ---- Checks, when a copy is issued

struct Issue {
  Warp &w;
  int lane;
  const BulkShape &shape;
  Accessor shared, global;
};

// What is wrong with the chunks' shared memory is reported once.
bool check_shared(const Issue &x, const std::vector<Chunk> &chunks) {
  Block &block = *x.w.block;
  Run &run = *x.w.run;
  const bool loads = x.shape.direction == BulkShape::kLoad;
  const char *const verb = loads ? "bulk copy's write" : "bulk copy's read";
  bool reported = false;
  for (const Chunk &chunk : chunks) {
    const auto where = [&] { return "shared memory + " + std::to_string(chunk.shared); };
    if (!reported && block.mbarrier_in(chunk.shared, kChunk) != nullptr) {
      run.report(x.w, Kind::kMbarrier, x.lane, verb + (" of " + where()) + ", where an mbarrier is");
      reported = true;
    }
    if (run.options.uninitialised) {
      std::byte *written = block.initialised.data() + chunk.shared;
      if (!loads && !reported && std::memchr(written + chunk.begin, 0, static_cast<size_t>(chunk.end - chunk.begin))) {
        run.report(x.w, Kind::kUninitialised, x.lane, verb + (" of " + where()) + ", which nothing has written yet");
        reported = true;
      }
      if (loads) std::memset(written, 1, kChunk);
    }
    if (block.shadow == nullptr) continue;
    const Conflict c = loads ? block.shadow->write(*block.clocks, x.shared, chunk.shared, kChunk)
                             : block.shadow->read(*block.clocks, x.shared, chunk.shared, kChunk);
    if (c && !reported) {
      report_conflict(x.w, x.lane, verb, where(), c);
      reported = true;
    }
  }
  return !reported;
}

bool check_global(const Issue &x, const std::vector<Chunk> &chunks) {
  Run &run = *x.w.run;
  const bool loads = x.shape.direction == BulkShape::kLoad, counts = run.options.traffic;
  const char *const verb = loads ? "bulk copy's read" : "bulk copy's write";
  uint64_t last_sector = ~uint64_t{0};
  bool reported = false, inside = true;
  for (const Chunk &chunk : chunks) {
    each_piece(chunk, [&](uint64_t address, int bytes) {
      TrackedBuffer *buffer = run.buffers.find(address, static_cast<size_t>(bytes));
      const bool writable = loads || buffer == nullptr || !buffer->constant;
      if (buffer == nullptr || !writable) {
        inside = false;
        if (!reported && writable)
          run.report(x.w, Kind::kOutOfBounds, x.lane, verb + (" at " + run.buffers.describe(address)));
        else if (!reported)
          run.report(x.w, Kind::kReadOnly, x.lane, verb + (" of the constant " + buffer->buffer.name));
        reported = true;
        return;
      }
      if (run.global_shadow != nullptr && !buffer->constant) {
        const Clocks &clocks = *x.w.block->clocks;
        const Conflict c = loads ? run.global_shadow->read(clocks, x.w.block->number, x.global, address, bytes)
                                 : run.global_shadow->write(clocks, x.w.block->number, x.global, address, bytes);
        if (c && !reported) {
          report_conflict(x.w, x.lane, verb, run.buffers.describe(address), c);
          reported = true;
        }
      }
      if (!counts || buffer->constant) return;
      Traffic &t = buffer->traffic;
      const uint64_t begin = address - buffer->buffer.address, end = begin + static_cast<uint64_t>(bytes);
      const bool new_sector = address / 32 != last_sector;
      last_sector = address / 32;
      if (loads) {
        t.read_bytes += end - begin;
        t.read_sectors += new_sector;
        t.read_unique_bytes += buffer->read.add(begin, end);
      } else if (x.shape.direction == BulkShape::kReduce) {
        t.atomic_bytes += end - begin;
      } else {
        const uint64_t added = buffer->written.add(begin, end);
        t.written_bytes += end - begin;
        t.written_sectors += new_sector;
        t.written_unique_bytes += added;
        t.written_twice_bytes += end - begin - added;
      }
    });
  }
  return inside;
}

// ---- The bytes themselves

// A float as PTX's special NaN of a fill, by CUtensorMapDataType.
void fill(const TensorMap &map, std::byte *to) {
  constexpr uint8_t kHalf = 6, kBfloat = 9;
  const bool is_half = map.type == kHalf || map.type == kBfloat;
  const uint32_t word = !map.fills_nan ? 0 : is_half ? 0x7fff7fff : kNan32;
  for (uint32_t k = 0; k < kChunk; k += 4) std::memcpy(to + k, &word, sizeof word);
}

template <class T>
T reduced(BulkShape::Operation operation, T a, T b) {
  switch (operation) {
    case BulkShape::kMin:
      return std::min(a, b);
    case BulkShape::kMax:
      return std::max(a, b);
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    switch (operation) {
      case BulkShape::kIncrement:
        return a >= b ? T{0} : static_cast<T>(a + 1);
      case BulkShape::kDecrement:
        return a == 0 || a > b ? b : static_cast<T>(a - 1);
      case BulkShape::kAnd:
        return a & b;
      case BulkShape::kOr:
        return a | b;
      case BulkShape::kXor:
        return a ^ b;
      default:
        break;
    }
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

template <class T>
void reduce_in_place(BulkShape::Operation operation, std::byte *to, const std::byte *from) {
  T a, b;
  std::memcpy(&a, to, sizeof a);
  std::memcpy(&b, from, sizeof b);
  a = reduced(operation, a, b);
  std::memcpy(to, &a, sizeof a);
}
template <bool bf16>
void reduce_half(BulkShape::Operation operation, std::byte *to, const std::byte *from) {
  uint16_t a, b;
  std::memcpy(&a, to, sizeof a);
  std::memcpy(&b, from, sizeof b);
  const double x = bf16 ? bf16_float(a) : f16_float(a), y = bf16 ? bf16_float(b) : f16_float(b);
  const double z = operation == BulkShape::kAdd ? add_odd(x, y) : reduced(operation, x, y);
  a = bf16 ? to_bf16(z) : to_f16(z);
  std::memcpy(to, &a, sizeof a);
}

void reduce(const BulkCopy &copy, std::byte *to, const std::byte *from, int bytes) {
  using Reduce = void (*)(BulkShape::Operation, std::byte *, const std::byte *);
  struct Kind {
    Reduce reduce;
    int bytes;
  };
  constexpr Kind kKinds[] = {{reduce_in_place<uint8_t>, 1},  {reduce_in_place<uint16_t>, 2},
                             {reduce_in_place<uint32_t>, 4}, {reduce_in_place<int32_t>, 4},
                             {reduce_in_place<uint64_t>, 8}, {reduce_in_place<int64_t>, 8},
                             {reduce_half<false>, 2},        {reduce_in_place<float>, 4},
                             {reduce_in_place<double>, 8},   {reduce_half<true>, 2}};
  const Kind &kind = kKinds[copy.element];
  for (int k = 0; k < bytes; k += kind.bytes) kind.reduce(copy.shape->operation, to + k, from + k);
}

void perform(Block &block, const BulkCopy &copy) {
  for (size_t k = 0; k < copy.chunks.size(); ++k) {
    const Chunk &chunk = copy.chunks[k];
    std::byte *const shared = block.shared.data() + chunk.shared;
    if (copy.shape->direction == BulkShape::kLoad) {
      std::memcpy(shared, copy.data.data() + k * kChunk, kChunk);
      continue;
    }
    const int bytes = chunk.end - chunk.begin;
    auto *const global = reinterpret_cast<std::byte *>(chunk.global + chunk.begin);
    if (bytes == 0) continue;
    if (copy.shape->direction == BulkShape::kReduce)
      reduce(copy, global, shared + chunk.begin, bytes);
    else
      std::memcpy(global, shared + chunk.begin, static_cast<size_t>(bytes));
  }
  ++block.run->changes;
}

// A report in the name of a thread that may stand elsewhere by now.
void report_of(Block &block, int thread, uint32_t pc, Kind kind, const std::string &what) {
  Warp &w = block.warps[static_cast<size_t>(thread / kLanes)];
  const uint32_t now = w.pc;
  w.pc = pc;
  block.run->report(w, kind, thread % kLanes, what);
  w.pc = now;
}

// ---- Issuing

// The chunks of one lane's copy; nullopt: it can't be made and has been reported.
std::optional<std::vector<Chunk>> chunks_of(Warp &w, const BulkShape &shape, int lane, TensorMap &map) {
  Run &run = *w.run;
  if (shape.rank == 0) {
    const uint32_t bytes = w.in<uint32_t>(shape.bytes)[lane];
    if (bytes % kChunk != 0 || bytes == 0) {
      run.report(w, Kind::kMisaligned, lane,
                 "a bulk copy of " + std::to_string(bytes) + " bytes, not a multiple of 16");
      return std::nullopt;
    }
    const std::optional<uint32_t> shared = shared_offset(w, shape.shared, lane, bytes, kChunk, "a bulk copy");
    uint64_t addresses[kLanes];
    lane_addresses(w, shape.global.base, shape.global.offset, addresses);
    if (!shared) return std::nullopt;
    if (addresses[lane] % kChunk != 0) {
      run.report(w, Kind::kMisaligned, lane,
                 "a bulk copy at " + run.buffers.describe(addresses[lane]) + ", not a multiple of 16");
      return std::nullopt;
    }
    std::vector<Chunk> chunks;
    for (uint32_t at = 0; at < bytes; at += kChunk) chunks.push_back({*shared + at, 0, kChunk, addresses[lane] + at});
    return chunks;
  }
  const std::optional<TensorMap> found = map_at(w, shape.global, lane);
  if (!found) return std::nullopt;
  map = *found;
  if (map.rank != shape.rank) {
    run.report(
        w, Kind::kOutOfBounds, lane,
        "a copy of " + std::to_string(shape.rank) + " dimensions, and a tensor map of " + std::to_string(map.rank));
    return std::nullopt;
  }
  const std::optional<uint32_t> shared =
      shared_offset(w, shape.shared, lane, map.copy_bytes(), kTileAlign, "a box of a tensor");
  if (!shared) return std::nullopt;
  int64_t first[TensorMap::kMostDimensions] = {};
  for (int d = 0; d < map.rank; ++d) first[d] = w.in<int32_t>(shape.coordinates[d])[lane];
  return chunks_of(map, first, *shared);
}

void start_load(Warp &w, const BulkShape &shape, int lane) {
  Block &block = *w.block;
  Run &run = *w.run;
  if (shape.multicast.given() && w.in<uint16_t>(shape.multicast)[lane] != 1)
    run.stop(w, Kind::kLaunch, lane, "clusters of several blocks aren't supported");
  TensorMap map;
  std::optional<std::vector<Chunk>> chunks = chunks_of(w, shape, lane, map);
  const std::optional<uint32_t> at =
      shared_offset(w, shape.mbarrier, lane, kMbarrierBytes, kMbarrierBytes, "an mbarrier");
  Mbarrier *const m = at ? find_mbarrier(w, lane, *at) : nullptr;
  if (!chunks || m == nullptr) return;
  const int thread = w.thread(lane);
  const Accessor who{thread, w.pc, Strength::kWeak, m->agent, m->agent_clock};
  if (block.clocks != nullptr) {
    block.clocks->set_owner(m->agent, thread);
    if (!block.clocks->fenced(Proxy::kMbarrierInit, m->thread, m->clock, thread)) {
      run.report(
          w, Kind::kFence, lane,
          "a bulk copy completes on an mbarrier whose init no fence.mbarrier_init (or fence.proxy.async) followed",
          {m->pc, block.number, m->thread});
    }
  }
  const Issue issue{w, lane, shape, who, who};
  check_shared(issue, *chunks);
  if (!check_global(issue, *chunks)) return;
  m->copied = m->phase + 1;
  m->copy_pc = w.pc;
  m->copy_thread = thread;

  BulkCopy copy{&shape, w.pc, thread, *at, m->phase, 0, std::move(*chunks), {}};
  copy.data.resize(copy.chunks.size() * kChunk);
  for (size_t k = 0; k < copy.chunks.size(); ++k) {
    const Chunk &chunk = copy.chunks[k];
    std::byte *const to = copy.data.data() + k * kChunk;
    if (shape.rank != 0) fill(map, to);
    if (chunk.begin < chunk.end) {
      std::memcpy(to + chunk.begin, reinterpret_cast<const void *>(chunk.global + chunk.begin),
                  static_cast<size_t>(chunk.end - chunk.begin));
    }
    std::memset(block.shared.data() + chunk.shared, 0xff, kChunk);
  }
  block.bulk.push_back(std::move(copy));
  ++run.changes;
  if (run.options.copies == Copies::kEager || at_random(run)) land_bulk_copy(block, block.bulk.size() - 1);
}

void start_store(Warp &w, const BulkShape &shape, int lane) {
  Block &block = *w.block;
  Run &run = *w.run;
  TensorMap map;
  std::optional<std::vector<Chunk>> chunks = chunks_of(w, shape, lane, map);
  if (!chunks) return;
  const int thread = w.thread(lane);
  BulkGroups &groups = block.bulk_groups[thread];
  const uint32_t group = groups.commits + 1;
  groups.last_group = group;
  groups.last_pc = w.pc;
  if (block.clocks != nullptr && groups.reader < 0) {
    groups.reader = block.clocks->add_agent(thread);
    groups.writer = block.clocks->add_agent(thread);
  }
  const Strength strength = shape.direction == BulkShape::kReduce ? Strength::kDevice : Strength::kWeak;
  const Issue issue{w,
                    lane,
                    shape,
                    {thread, w.pc, Strength::kWeak, groups.reader, group},
                    {thread, w.pc, strength, groups.writer, group}};
  check_shared(issue, *chunks);
  if (!check_global(issue, *chunks)) return;
  block.bulk.push_back({&shape, w.pc, thread, 0, 0, group, std::move(*chunks), {}});
  // The map says what a reduction adds, the instruction only that it does.
  if (shape.rank != 0 && shape.direction == BulkShape::kReduce) {
    constexpr uint8_t kFloats = 10;  // FLOAT32_FTZ and TFLOAT32 follow
    block.bulk.back().element = map.type >= kFloats ? BulkShape::kF32 : static_cast<BulkShape::Element>(map.type);
  } else {
    block.bulk.back().element = shape.element;
  }
  ++run.changes;
  if (run.options.copies == Copies::kEager || at_random(run)) land_bulk_copy(block, block.bulk.size() - 1);
}

// Lanes of one instruction that store the same bytes to the same place are one copy, as CUTLASS's epilogues have it.
Mask different_stores(const Warp &w, const BulkShape &shape, Mask mask) {
  const auto same = [&](const Operand &o, int a, int b) {
    if (!o.given()) return true;
    const std::byte *lanes = w.in<std::byte>(o);
    return std::memcmp(lanes + a * o.bytes, lanes + b * o.bytes, o.bytes) == 0;
  };
  const int first = __builtin_ctz(mask);
  Mask different = Mask{1} << first;
  each_lane(mask & ~different, [&](int lane) {
    bool is_same =
        same(shape.shared.base, first, lane) && same(shape.global.base, first, lane) && same(shape.bytes, first, lane);
    for (const Operand &x : shape.coordinates) is_same = is_same && same(x, first, lane);
    different |= Mask{!is_same} << lane;
  });
  return different;
}

void start(Warp &w, const Instruction &i, Mask mask) {
  const BulkShape &shape = w.run->kernel.bulk_shapes[i.target];
  if (shape.direction == BulkShape::kLoad) return each_lane(mask, [&](int lane) { start_load(w, shape, lane); });
  if (shape.direction == BulkShape::kStore) mask = different_stores(w, shape, mask);
  each_lane(mask, [&](int lane) { start_store(w, shape, lane); });
}

void commit(Warp &w, const Instruction &, Mask mask) {
  each_lane(mask, [&](int lane) { ++w.block->bulk_groups[w.thread(lane)].commits; });
}

// target: groups that may be left; mode: whether their writes may be left too.
void wait(Warp &w, const Instruction &i, Mask mask) {
  Block &block = *w.block;
  each_lane(mask, [&](int lane) {
    const int thread = w.thread(lane);
    BulkGroups &groups = block.bulk_groups[thread];
    if (groups.commits <= i.target) return;
    const uint32_t done = groups.commits - i.target;
    for (size_t k = 0; k < block.bulk.size();) {
      const BulkCopy &copy = block.bulk[k];
      if (copy.shape->direction != BulkShape::kLoad && copy.thread == thread && copy.group <= done)
        land_bulk_copy(block, k);
      else
        ++k;
    }
    groups.read = std::max(groups.read, done);
    if (block.clocks == nullptr || groups.reader < 0) return;
    block.clocks->learn(w.thread(0), Mask{1} << lane, groups.reader, done);
    if (i.mode == 0) block.clocks->learn(w.thread(0), Mask{1} << lane, groups.writer, done);
  });
}

// ---- Text

void decode(Builder &b, bool reduces, bool tensor) {
  BulkShape shape;
  if (tensor) shape.rank = 1 + b.take_one({"1d", "2d", "3d", "4d", "5d"});
  if (tensor && shape.rank == 0) b.fail("no number of dimensions");
  const bool to_global = !b.has("mbarrier::complete_tx::bytes");
  b.take("global");
  if (to_global) {
    if (!b.take("shared::cta") || !b.take("bulk_group")) b.fail("only .global.shared::cta with .bulk_group");
    shape.direction = reduces ? BulkShape::kReduce : BulkShape::kStore;
  } else {
    b.take("mbarrier::complete_tx::bytes");
    if (reduces || (!b.take("shared::cluster") && !b.take("shared::cta")) || b.has("shared::cta"))
      b.fail("between shared memory of blocks isn't supported");
  }
  b.take("tile");
  const bool multicast = b.take("multicast::cluster"), has_policy = b.has("L2::cache_hint");
  b.take_cache_hints();
  if (reduces) {
    const int operation = b.take_one({"add", "min", "max", "inc", "dec", "and", "or", "xor"});
    if (operation < 0) b.fail("no operation");
    shape.operation = static_cast<BulkShape::Operation>(operation);
    b.take("noftz");
    if (!tensor) {
      const int type = b.take_one({"u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "b32", "b64"});
      if (type < 2) b.fail("no such type");
      constexpr BulkShape::Element kBits[] = {BulkShape::kU32, BulkShape::kU64};
      shape.element = type >= 10 ? kBits[type - 10] : static_cast<BulkShape::Element>(type);
    }
  }
  // Target, source, bytes if it is no tensor, mbarrier, mask, policy.
  const size_t fixed = 2 + (tensor ? 0 : 1) + (to_global ? 0 : 1), all = fixed + multicast + has_policy;
  b.expect(all, all);
  const Arg &global = b.arg(to_global ? 0 : 1);
  shape.shared = b.address_of(b.arg(to_global ? 1 : 0));
  shape.global = b.address_of(global);
  const Type word{Type::kBits, 32};
  if (tensor) {
    if (global.parts.size() != 1 || global.parts[0].parts.size() != static_cast<size_t>(shape.rank))
      b.fail("wrong number of coordinates");
    for (size_t d = 0; d < global.parts[0].parts.size(); ++d) {
      shape.coordinates[d] = b.source(global.parts[0].parts[d], word);
    }
  } else {
    shape.bytes = b.source(2, word);
  }
  if (!to_global) shape.mbarrier = b.address_of(b.arg(fixed - 1));
  if (multicast) shape.multicast = b.source(fixed, {Type::kBits, 16});
  b.add_shape(shape);
  b.result.run = start;
}

}  // namespace

void land_bulk_copy(Block &block, size_t index) {
  const BulkCopy copy = std::move(block.bulk[index]);
  block.bulk.erase(block.bulk.begin() + static_cast<std::ptrdiff_t>(index));
  perform(block, copy);
  if (copy.shape->direction != BulkShape::kLoad) return;
  const auto found = block.mbarriers.find(copy.mbarrier);
  if (found == block.mbarriers.end()) {
    return report_of(block, copy.thread, copy.pc, Kind::kMbarrier, "the mbarrier of a bulk copy is gone when it ends");
  }
  if (found->second.phase != copy.phase) {
    report_of(block, copy.thread, copy.pc, Kind::kMbarrier,
              "a bulk copy ends when the phase of its mbarrier is over: more bytes are copied than expected");
  }
  complete_bytes(block, found->second, static_cast<int64_t>(copy.chunks.size() * kChunk));
}

void end_of_thread(Warp &w, int lane) {
  const auto found = w.block->bulk_groups.find(w.thread(lane));
  if (found == w.block->bulk_groups.end() || found->second.last_group <= found->second.read) return;
  report_of(*w.block, w.thread(lane), found->second.last_pc, Kind::kInFlight,
            "the thread ends, and nothing has waited until this copy has read shared memory");
}

void end_of_block(Warp &last) {
  Block &block = *last.block;
  while (!block.bulk.empty()) land_bulk_copy(block, 0);
  for (const auto &[offset, m] : block.mbarriers) {
    if (m.copied > m.waited) {
      report_of(block, m.copy_thread, m.copy_pc, Kind::kInFlight,
                "the block ends, and nothing has waited for this copy on the mbarrier at shared memory + " +
                    std::to_string(offset));
    } else if (m.bytes != 0) {
      report_of(block, m.thread, m.pc, Kind::kMbarrier,
                "the block ends, and " + std::to_string(m.bytes) + " bytes are still expected at this mbarrier");
    }
  }
}

std::vector<Opcode> bulk_opcodes() {
  const auto wait_for = [](Builder &b) {
    b.result.mode = b.take("read");
    b.expect(1, 1);
    if (b.arg(0).kind != Arg::kInteger) b.fail("a literal is wanted");
    b.result.target = static_cast<uint32_t>(b.arg(0).value);
    b.result.run = wait;
  };
  return {
      {"cp.async.bulk", [](Builder &b) { decode(b, false, false); }},
      {"cp.async.bulk.tensor", [](Builder &b) { decode(b, false, true); }},
      {"cp.reduce.async.bulk", [](Builder &b) { decode(b, true, false); }},
      {"cp.reduce.async.bulk.tensor", [](Builder &b) { decode(b, true, true); }},
      {"cp.async.bulk.commit_group",
       [](Builder &b) {
         b.expect(0, 0);
         b.result.run = commit;
       }},
      {"cp.async.bulk.wait_group", wait_for},
  };
}

}  // namespace emulator
