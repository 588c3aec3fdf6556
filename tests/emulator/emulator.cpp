#include "emulator.h"

#include <algorithm>
#include <cstring>

#include "machine.h"
#include "parser.h"

namespace emulator {

// ---- Reports

const char *name_of(Kind kind) {
  switch (kind) {
    case Kind::kOutOfBounds:
      return "out of bounds";
    case Kind::kMisaligned:
      return "misaligned";
    case Kind::kReadOnly:
      return "read only";
    case Kind::kUninitialised:
      return "uninitialised";
    case Kind::kRace:
      return "race";
    case Kind::kInFlight:
      return "in flight";
    case Kind::kFence:
      return "missing fence";
    case Kind::kMbarrier:
      return "mbarrier";
    case Kind::kBarrier:
      return "barrier";
    case Kind::kDeadlock:
      return "deadlock";
    case Kind::kTrap:
      return "trap";
    case Kind::kTimeout:
      return "timeout";
    case Kind::kLaunch:
      return "launch";
  }
  return "?";
}

std::string Line::text() const {
  std::string result = file + ":" + std::to_string(line);
  if (caller_file != file || caller_line != line) {
    result += " (inlined at " + caller_file + ":" + std::to_string(caller_line) + ")";
  }
  return result;
}

namespace {
std::string text_of(Dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}
}  // namespace

std::string Report::text() const {
  std::string result = std::string(name_of(kind)) + " in " + kernel;
  if (kind == Kind::kLaunch) return result + ": " + detail;
  result += " at " + line.text() + ", block " + text_of(block) + " thread " + text_of(thread) + ": " + detail + " [" +
            line.ptx + "]";
  if (other) {
    result += "\n  the earlier one at " + other->text() + ", block " + text_of(other_block) + " thread " +
              text_of(other_thread) + " [" + other->ptx + "]";
  }
  if (number > 1) result += " (" + std::to_string(number) + " times)";
  return result;
}

// ---- Modules

std::vector<KernelInfo> Module::kernels() const {
  std::vector<KernelInfo> all;
  for (const std::string &name : impl_->names) all.push_back(impl_->kernels.at(name).info);
  return all;
}
bool Module::has_kernel(std::string_view name) const { return impl_->kernels.count(std::string(name)) != 0; }
KernelInfo Module::kernel(std::string_view name) const { return impl_->kernels.at(std::string(name)).info; }

std::vector<InstructionInfo> Module::instructions(std::string_view name) const {
  const Kernel &kernel = impl_->kernels.at(std::string(name));
  std::vector<InstructionInfo> all;
  for (size_t pc = 0; pc + 1 < kernel.code.size(); ++pc) {
    Line line = kernel.lines[kernel.code[pc].line];
    line.ptx = kernel.texts[pc];
    all.push_back({static_cast<int>(kernel.code[pc].ptx_line), kernel.texts[pc], line});
  }
  return all;
}

std::optional<Buffer> Module::variable(std::string_view name) const {
  for (const auto &v : impl_->variables) {
    if (v->name == name) return Buffer{v->name, v->address, v->bytes};
  }
  return std::nullopt;
}

Module load_module(std::string_view ptx) { return Module(parse(ptx)); }

// ---- Launches

const Traffic *Stats::traffic(const void *address) const {
  const auto at = reinterpret_cast<uint64_t>(address);
  for (const Traffic &t : buffers) {
    if (at >= t.buffer.address && at - t.buffer.address < t.buffer.bytes) return &t;
  }
  return nullptr;
}

Run::Run(const Kernel &k, const Options &o, Dim3 g, Dim3 b, size_t shared, BufferTable table)
    : kernel(k), options(o), grid(g), block(b), shared_bytes(shared), buffers(std::move(table)), random(o.seed) {
  counters.executed.assign(kernel.code.size(), 0);
  if (options.races) global_shadow = std::make_unique<GlobalShadow>();
  literals.resize(kernel.literals.size() * kLiteralBytes);
  for (size_t l = 0; l < kernel.literals.size(); ++l) {
    const auto [value, bytes] = kernel.literals[l];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      std::memcpy(literals.data() + l * kLiteralBytes + lane * bytes, &value, bytes);
    }
  }
}

Dim3 Run::block_index(uint64_t number) const {
  return {static_cast<uint32_t>(number % grid.x), static_cast<uint32_t>(number / grid.x % grid.y),
          static_cast<uint32_t>(number / grid.x / grid.y)};
}

Dim3 Run::thread_index(int thread) const {
  const auto t = static_cast<uint32_t>(thread);
  return {t % block.x, t / block.x % block.y, t / block.x / block.y};
}

Line Run::line(uint32_t pc) const {
  Line line = kernel.lines[kernel.code[pc].line];
  line.ptx = kernel.texts[pc];
  return line;
}

Report Run::make(const Warp &warp, Kind kind, int lane, std::string detail) const {
  Report report{};
  report.kind = kind;
  report.kernel = kernel.info.name;
  report.line = line(warp.pc);
  report.block = warp.block->index;
  report.thread = thread_index(warp.thread(lane));
  report.detail = std::move(detail);
  return report;
}

void Run::add(Report report) {
  const auto same = [](const Line &a, const Line &b) {
    return a.file == b.file && a.line == b.line && a.caller_file == b.caller_file && a.caller_line == b.caller_line;
  };
  for (Report &known : reports) {
    if (known.kind != report.kind || !same(known.line, report.line)) continue;
    if (known.other.has_value() != report.other.has_value()) continue;
    if (known.other && !same(*known.other, *report.other)) continue;
    ++known.number;
    return;
  }
  if (reports.size() < options.max_reports) reports.push_back(std::move(report));
  if (!options.collect) throw Stopped{};
}

void Run::report(const Warp &warp, Kind kind, int lane, std::string detail) {
  add(make(warp, kind, lane, std::move(detail)));
}

void Run::report(const Warp &warp, Kind kind, int lane, std::string detail, const Earlier &earlier) {
  Report r = make(warp, kind, lane, std::move(detail));
  r.other = line(earlier.pc);
  r.other_block = block_index(earlier.block);
  r.other_thread = thread_index(earlier.thread);
  add(std::move(r));
}

void Run::stop(const Warp &warp, Kind kind, int lane, std::string detail) {
  reports.push_back(make(warp, kind, lane, std::move(detail)));
  throw Stopped{};
}

namespace {

void check_launch(const Kernel &kernel, Dim3 grid, Dim3 block, size_t shared_bytes, const Options &options) {
  const auto fail = [&](std::string detail) {
    Report report{};
    report.kind = Kind::kLaunch;
    report.kernel = kernel.info.name;
    report.detail = std::move(detail);
    throw Fault(std::move(report));
  };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) fail("a block has 1 to 1024 threads, got " + text_of(block));
  if (threads > kernel.info.max_threads) {
    fail("the kernel was compiled for " + std::to_string(kernel.info.max_threads) + " threads, got " + text_of(block));
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    fail("a grid has 1 to (2147483647,65535,65535) blocks, got " + text_of(grid));
  }
  if (shared_bytes > options.shared_limit_bytes) {
    fail("a block has at most " + std::to_string(options.shared_limit_bytes) + " bytes of shared memory, got " +
         std::to_string(shared_bytes));
  }
}

}  // namespace

Stats launch(const Module &module, Memory &memory, std::string_view name, Dim3 grid, Dim3 block,
             size_t dynamic_shared_bytes, const void *const *params, const Options &options) {
  const Kernel &kernel = module.impl().kernels.at(std::string(name));
  const uint64_t fixed = kSharedStart + kernel.static_shared_bytes, align = kernel.dynamic_align;
  const size_t shared_bytes = dynamic_shared_bytes == 0
                                  ? kernel.static_shared_bytes
                                  : (fixed + align - 1) / align * align - kSharedStart + dynamic_shared_bytes;
  check_launch(kernel, grid, block, shared_bytes, options);
  if (!options.run) return {};

  Run run(kernel, options, grid, block, shared_bytes, BufferTable(memory, module.impl()));
  run.parameters.resize(kernel.parameter_bytes + sizeof(uint64_t) * 2);
  for (size_t p = 0; p < kernel.parameters.size(); ++p) {
    std::memcpy(run.parameters.data() + kernel.parameters[p].offset, params[p], kernel.parameters[p].bytes);
  }
  bool stopped = false;
  try {
    run_blocks(run);
  } catch (const Stopped &) {
    stopped = true;
  }
  if (stopped && !options.collect) throw Fault(run.reports.back());
  Stats stats;
  run.counters.finish(kernel, stats);
  for (size_t pc = 0; options.executed_lines && pc + 1 < kernel.code.size(); ++pc) {
    if (run.counters.executed[pc] != 0) stats.executed_lines.push_back(static_cast<int>(kernel.code[pc].ptx_line));
  }
  for (TrackedBuffer &tracked : run.buffers.all()) {
    if (tracked.touched && !tracked.constant) stats.buffers.push_back(tracked.traffic);
  }
  stats.reports = std::move(run.reports);
  return stats;
}

}  // namespace emulator
