// Fibers for the threads of a cluster of blocks, and checks of what they read and write. The kernels are compiled with
// -fsanitize=thread, which calls a function before every load and store; the functions here stand in for that
// sanitizer's own. This file is compiled without.
#include "machine.h"

#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kMostThreads = 1024, kMostCluster = 16;

// Settings of the tests.
int capability = 90, order = 0;
bool host_numbers = true;

// What has run, for the tests to ask.
std::set<std::string> kernels;
int64_t launches = 0, accesses = 0, clustered = 0;

struct Block;

struct Copy {
  void* to;
  const void* from;
  size_t size;
};

struct Warp {
  uint32_t present = 0, done = 0;  // lanes that exist, and that have ended
  uint32_t mask = 0, arrived = 0;  // of the exchange that is under way
  unsigned turn = 0;
  const char* file = nullptr;
  int line = 0;
  uint64_t values[2][32];
};

struct Thread {
  Index index;
  unsigned number;  // within the block
  uint32_t id;      // within the grid
  Block* block;
  Warp* warp;
  bool done, atomic_next;
  std::vector<std::vector<Copy>> copies;  // asynchronous ones by groups; the last group is open
};

struct Barrier {
  unsigned arrived = 0;
  const char* file = nullptr;
  int line = 0;
};

struct Variable {
  size_t at, size;
};

struct Block {
  Index index;
  unsigned rank;
  uint32_t number;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned live;
  Barrier barrier;
  uint32_t visited;               // the cluster's count of barriers, from 1, when another block last came to its memory
  uint32_t epoch, cluster_epoch;  // barriers that it has passed; how many at the last one of the cluster
  char* memory;                   // shared
};

// One for each byte of shared memory, or each smallest element of tensors.
struct Cell {
  uint32_t writer, reader;  // ids of threads
  uint32_t write_epoch, read_epoch;
  uint8_t written, write_atomic, read, read_atomic;  // read: see Readers
};

enum Readers : uint8_t { none, one, of_a_block, of_a_cluster, of_clusters };

struct Region {
  uintptr_t lo, hi;
  bool writable;
  int64_t itemsize;
};

struct Shadow {
  static constexpr size_t kPage = 4096;
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
  uintptr_t last = ~uintptr_t(0);
  Cell* cells = nullptr;

  Cell& at(uintptr_t granule) {
    const uintptr_t page = granule / kPage;
    if (page != last) {
      auto& found = pages[page];
      if (!found) found.reset(new Cell[kPage]());
      cells = found.get();
      last = page;
    }
    return cells[granule % kPage];
  }

  void clear() {
    for (auto& page : pages) memset(static_cast<void*>(page.second.get()), 0, kPage * sizeof(Cell));
  }

  void drop() {
    pages.clear();
    last = ~uintptr_t(0);
  }
};

struct Fiber {
  ucontext_t context;
  jmp_buf at;
  bool started = false;
};

// Reserved once: stacks and shared memory of the largest cluster.
struct Machine {
  char *stacks = nullptr, *memories = nullptr;
  size_t stack_bytes = 0, memory_bytes = 0;
  std::vector<Fiber> fibers;
  jmp_buf host;
  const Launch* launch = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  std::vector<Block> blocks;  // of the cluster that runs
  Barrier cluster_barrier;
  uint32_t cluster_syncs = 0;
  std::deque<Thread*> ready;
  std::map<const void*, Variable> variables;  // shared ones of the kernel that runs
  size_t shared_bytes = 0;
  Shadow shared_shadow, shadow;
  std::vector<Region> regions;
  int64_t granule = 1;
  uintptr_t host_lo = 0, host_hi = 0, image_lo = 0, image_hi = 0;
  std::string error, kernel;
  std::mt19937 random;
  bool running = false;
};

Machine machine;
Thread* current = nullptr;

constexpr size_t kMemory = 512 << 10;  // of a block: the shared memory, and gaps between its variables
constexpr size_t kGap = 64;

Fiber& fiber_of(const Thread& t) { return machine.fibers[t.block->rank * kMostThreads + t.number]; }
char* stack_of(const Thread& t) { return machine.stacks + (t.block->rank * kMostThreads + t.number) * kStackBytes; }

std::string who(const Thread& t) {
  char text[128];
  snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", t.index.x, t.index.y, t.index.z,
           t.block->index.x, t.block->index.y, t.block->index.z);
  return text;
}

void wake(std::vector<Thread*> threads) {
  if (order == 1) std::reverse(threads.begin(), threads.end());
  if (order > 1) std::shuffle(threads.begin(), threads.end(), machine.random);
  machine.ready.insert(machine.ready.end(), threads.begin(), threads.end());
}

// All but this thread go on.
void wake_from(Block& b, std::vector<Thread*>& others) {
  for (Thread& t : b.threads)
    if (!t.done && &t != current) others.push_back(&t);
}

void pass_barrier(Block& b) {
  b.barrier = {};
  ++b.epoch;
  std::vector<Thread*> others;
  wake_from(b, others);
  wake(others);
}

unsigned live_in_cluster() {
  unsigned live = 0;
  for (const Block& b : machine.blocks) live += b.live;
  return live;
}

void pass_cluster_barrier() {
  machine.cluster_barrier = {};
  ++machine.cluster_syncs;
  std::vector<Thread*> others;
  for (Block& b : machine.blocks) {
    b.cluster_epoch = ++b.epoch;
    wake_from(b, others);
  }
  wake(others);
}

[[noreturn]] void go(Thread* to);

extern "C" void begin_fiber() {
  for (;;) {
    machine.body(machine.argument);
    Thread& t = *current;
    if (!t.copies.empty() && !t.copies.back().empty()) fail("ends before it has waited for its asynchronous copies");
    t.done = true;
    t.warp->done |= 1u << t.number % 32;
    if (t.warp->arrived && (t.warp->mask >> t.number % 32 & 1)) fail("ends where other lanes of its warp wait for it");
    Block& b = *t.block;
    if (!--b.live && b.visited == machine.cluster_syncs + 1)
      fail("is the last of its block to end, and no barrier of the cluster lies after another block's read");
    // Those who wait at a barrier wait for threads that have not ended.
    if (b.live && b.barrier.arrived == b.live) pass_barrier(b);
    const unsigned live = live_in_cluster();
    if (live && machine.cluster_barrier.arrived == live) pass_cluster_barrier();
    if (live && machine.ready.empty()) fail("ends, and every other thread waits for one that does not come");
    // In a later block or launch it goes on from here.
    if (!_setjmp(fiber_of(t).at)) {
      if (!live) _longjmp(machine.host, 1);
      Thread* next = machine.ready.front();
      machine.ready.pop_front();
      go(next);
    }
  }
}

[[noreturn]] void go(Thread* to) {
  current = to;
  Fiber& fiber = fiber_of(*to);
  if (!fiber.started) {
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {stack_of(*to), 0, kStackBytes};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, begin_fiber, 0);
    setcontext(&fiber.context);
  }
  _longjmp(fiber.at, 1);
}

// Lets others run until somebody wakes this thread.
void wait(const char* what) {
  if (machine.ready.empty()) fail(what);
  Thread* own = current;
  Thread* next = machine.ready.front();
  machine.ready.pop_front();
  if (!_setjmp(fiber_of(*own).at)) go(next);
}

bool before(uint32_t id, uint32_t epoch, const Thread& t) {
  if (id == t.id) return true;
  const auto threads = uint32_t(t.block->threads.size());
  const uint32_t block = id / threads;
  if (block == t.block->number) return epoch < t.block->epoch;
  const auto& blocks = machine.blocks;
  if (block < blocks[0].number || block > blocks.back().number) return false;
  return epoch < blocks[block - blocks[0].number].cluster_epoch;
}

bool readers_before(const Cell& c, const Thread& t) {
  switch (c.read) {
    case none:
      return true;
    case one:
      return before(c.reader, c.read_epoch, t);
    case of_a_block: {
      // Other threads of the reader's block count like it, and one of them may be t itself with others beside it.
      const auto threads = uint32_t(t.block->threads.size());
      if (c.reader / threads == t.block->number) return c.read_epoch < t.block->epoch;
      return before(c.reader, c.read_epoch, t);
    }
    case of_a_cluster:
      return c.read_epoch < machine.cluster_syncs;
    default:
      return false;
  }
}

std::string other(uint32_t id) {
  const auto threads = uint32_t(current->block->threads.size());
  return "thread " + std::to_string(id % threads) + " of block " + std::to_string(id / threads);
}

[[noreturn]] void race(const char* now, const char* then, uint32_t id, const char* where) {
  const std::string text =
      std::string(now) + " " + where + " that " + other(id) + " " + then + ", and no barrier lies between";
  fail(text.c_str());
}

void touch(Cell& c, const Thread& t, bool write, bool atomic, const char* where) {
  if (c.written && !before(c.writer, c.write_epoch, t) && !(atomic && c.write_atomic))
    race(write ? "writes" : "reads", c.write_atomic ? "changes atomically" : "wrote", c.writer, where);
  if (write) {
    if (!readers_before(c, t) && !(atomic && c.read_atomic)) race("writes", "reads", c.reader, where);
    c = {t.id, 0, t.block->epoch, 0, 1, atomic, none, 0};
    return;
  }
  if (c.read == none || readers_before(c, t)) {
    c.read = one;
    c.read_atomic = atomic;
  } else if (c.reader != t.id || c.read != one) {
    const auto threads = uint32_t(t.block->threads.size());
    const uint32_t first = machine.blocks[0].number, last = machine.blocks.back().number;
    const uint32_t theirs = c.reader / threads;
    if (theirs == t.block->number && c.read <= of_a_block) {
      c.read = of_a_block;
    } else {
      c.read = c.read != of_clusters && theirs >= first && theirs <= last ? of_a_cluster : of_clusters;
    }
    c.read_atomic = c.read_atomic && atomic;
  }
  c.reader = t.id;
  c.read_epoch = c.read == of_a_cluster ? machine.cluster_syncs : t.block->epoch;
}

void shared_access(uintptr_t p, size_t size, bool write, bool atomic) {
  Thread& t = *current;
  const uintptr_t base = uintptr_t(machine.memories);
  const unsigned rank = unsigned((p - base) / kMemory);
  const size_t at = (p - base) % kMemory;
  if (rank >= machine.blocks.size()) fail("reads or writes shared memory of a block that is not in its cluster");
  if (!machine.blocks[rank].live) fail("reads or writes shared memory of a block that has ended");
  if (rank != t.block->rank) machine.blocks[rank].visited = machine.cluster_syncs + 1;
  const Variable* found = nullptr;
  for (const auto& [key, variable] : machine.variables)
    if (at >= variable.at && at < variable.at + variable.size) found = &variable;
  if (!found || at + size > found->at + found->size)
    fail((std::string(write ? "writes " : "reads ") + std::to_string(size) +
          " bytes outside of any variable in shared memory" +
          (found ? ", at byte " + std::to_string(at - found->at) + " of one of " + std::to_string(found->size) : ""))
             .c_str());
  for (size_t i = 0; i < size; ++i) {
    Cell& c = machine.shared_shadow.at(p - base + i);
    if (!write && !c.written) fail("reads shared memory that none has written");
    touch(c, t, write, atomic, "shared memory");
  }
}

void global_access(uintptr_t p, size_t size, bool write, bool atomic, bool vector) {
  Thread& t = *current;
  const Region* region = nullptr;
  bool shared_with_writer = false;
  for (const Region& r : machine.regions) {
    if (p < r.lo || p + size > r.hi) continue;
    if (!region || (r.writable && !region->writable)) region = &r;
    shared_with_writer = shared_with_writer || r.writable;
  }
  // A tensor that is only read may lie where another one is written.
  if (!shared_with_writer)
    for (const Region& r : machine.regions) shared_with_writer |= r.writable && p < r.hi && p + size > r.lo;
  if (!region) {
    std::string text = std::string(write ? "writes " : "reads ") + std::to_string(size) + " bytes";
    intptr_t nearest = INTPTR_MAX;
    const Region* near = nullptr;
    for (const Region& r : machine.regions) {
      const intptr_t away = p < r.lo ? intptr_t(r.lo - p) : p >= r.hi ? intptr_t(p - r.hi) : 0;
      if (away < nearest) {
        nearest = away;
        near = &r;
      }
    }
    if (near && nearest < (1 << 20)) {
      text += " at byte " + std::to_string(intptr_t(p) - intptr_t(near->lo)) + " of a tensor of " +
              std::to_string(near->hi - near->lo) + " bytes";
    } else {
      text += " that belong to no tensor";
    }
    fail(text.c_str());
  }
  if (write && !region->writable) fail("writes to a tensor that the op only reads");
  if (vector && p % 16) fail("moves a vector of 16 bytes that does not start at a multiple of 16");
  if (!shared_with_writer) return;
  for (uintptr_t g = p / machine.granule; g <= (p + size - 1) / machine.granule; ++g)
    touch(machine.shadow.at(g), t, write, atomic, "memory");
}

void access(void* address, size_t size, bool write, bool aligned) {
  if (!current) return;
  Thread& t = *current;
  const uintptr_t p = uintptr_t(address);
  const uintptr_t stack = uintptr_t(stack_of(t));
  if (p >= stack && p < stack + kStackBytes) return;
  ++accesses;
  const bool atomic = t.atomic_next;
  t.atomic_next = false;
  if (aligned && p % size) fail("reads or writes a value that is not aligned to its size");
  const uintptr_t memories = uintptr_t(machine.memories), stacks = uintptr_t(machine.stacks);
  if (p >= memories && p < memories + machine.memory_bytes) return shared_access(p, size, write, atomic);
  if (p >= stacks && p < stacks + machine.stack_bytes) fail("reads or writes a variable of another thread");
  if (!write && p >= machine.host_lo && p < machine.host_hi) return;    // arguments of the launch
  if (!write && p >= machine.image_lo && p < machine.image_hi) return;  // constants
  global_access(p, size, write, atomic, size % 16 == 0);
}

void reserve() {
  if (machine.stacks) return;
  const auto map = [](size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("no room for the threads of a cluster");
    return static_cast<char*>(p);
  };
  machine.stack_bytes = kStackBytes * kMostThreads * kMostCluster;
  machine.memory_bytes = kMemory * kMostCluster;
  machine.stacks = map(machine.stack_bytes);
  machine.memories = map(machine.memory_bytes);
  machine.fibers.resize(kMostThreads * kMostCluster);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        const uintptr_t own = uintptr_t(&machine);
        uintptr_t lo = UINTPTR_MAX, hi = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          if (part.p_type != PT_LOAD) continue;
          lo = std::min<uintptr_t>(lo, info->dlpi_addr + part.p_vaddr);
          hi = std::max<uintptr_t>(hi, info->dlpi_addr + part.p_vaddr + part.p_memsz);
        }
        if (own < lo || own >= hi) return 0;
        machine.image_lo = lo;
        machine.image_hi = hi;
        return 1;
      },
      nullptr);
}

// The blocks of one cluster, from the first to the last thread's end.
void run_cluster(const Launch& launch, uint32_t first) {
  machine.variables.clear();
  machine.shared_bytes = 0;
  machine.shared_shadow.clear();
  machine.cluster_barrier = {};
  machine.cluster_syncs = 0;
  machine.ready.clear();
  machine.blocks.assign(launch.cluster, Block{});
  const unsigned count = launch.block.x * launch.block.y * launch.block.z;
  std::vector<Thread*> all;
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    Block& b = machine.blocks[rank];
    const uint32_t number = first + rank;
    b.index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y, number / launch.grid.x / launch.grid.y};
    b.rank = rank;
    b.number = number;
    b.live = count;
    b.epoch = 1;
    b.cluster_epoch = 0;
    b.visited = 0;
    b.memory = machine.memories + rank * kMemory;
    b.threads.resize(count);
    b.warps.resize((count + 31) / 32);
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = b.threads[i];
      t.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
      t.number = i;
      t.id = number * count + i;
      t.block = &b;
      t.warp = &b.warps[i / 32];
      t.warp->present |= 1u << i % 32;
      t.done = t.atomic_next = false;
      all.push_back(&t);
    }
  }
  wake(all);
  if (!_setjmp(machine.host)) {
    Thread* next = machine.ready.front();
    machine.ready.pop_front();
    go(next);
  }
  current = nullptr;
}

}  // namespace

Index thread_index() noexcept { return current->index; }
Index block_index() noexcept { return current->block->index; }
Index block_dim() noexcept { return machine.launch->block; }
Index grid_dim() noexcept { return machine.launch->grid; }
unsigned cluster_rank() noexcept { return current->block->rank; }
unsigned cluster_size() noexcept { return machine.launch->cluster; }
unsigned lane() noexcept { return current->number % 32; }

void fail(const char* what) {
  machine.error = current ? who(*current) + " " + what : what;
  // Fibers are left where they stand: the next launch begins them anew.
  for (Fiber& fiber : machine.fibers) fiber.started = false;
  _longjmp(machine.host, 1);
}

void run(const Launch& launch, void (*body)(void*), void* argument) {
  reserve();
  const auto refuse = [](const std::string& why) { throw std::runtime_error("cuda_on_cpu: " + why); };
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMostThreads) refuse("a block has " + std::to_string(threads) + " threads");
  if (blocks == 0) refuse("a grid has no blocks");
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) refuse("the grid is too large");
  if (launch.cluster == 0 || launch.cluster > kMostCluster || launch.grid.x % launch.cluster)
    refuse("clusters of " + std::to_string(launch.cluster) + " blocks do not fit a grid of " +
           std::to_string(launch.grid.x));
  if (launch.shared > shared_bytes_per_block()) refuse("a block asks for too much shared memory");
  pthread_attr_t attributes;
  void* stack;
  size_t size;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &size);
  pthread_attr_destroy(&attributes);
  machine.host_lo = uintptr_t(stack);
  machine.host_hi = machine.host_lo + size;
  machine.launch = &launch;
  machine.body = body;
  machine.argument = argument;
  machine.error.clear();
  machine.kernel = "a kernel";
  machine.random.seed(order);
  machine.granule = 8;
  for (const Region& r : machine.regions) machine.granule = std::min(machine.granule, r.itemsize);
  machine.shadow.drop();
  ++launches;
  clustered += launch.cluster > 1;
  // Of clusters too the order is open.
  const uint64_t clusters = blocks / launch.cluster;
  for (uint64_t i = 0; i < clusters && machine.error.empty(); ++i)
    run_cluster(launch, uint32_t((order ? clusters - 1 - i : i) * launch.cluster));
  machine.blocks.clear();
  if (!machine.error.empty()) refuse(machine.kernel + ": " + machine.error);
}

void entered(const char* kernel, unsigned threads, unsigned, unsigned) {
  machine.kernel = kernel;
  if (current->number == 0 && current->block->rank == 0) kernels.insert(kernel);
  const Index& b = machine.launch->block;
  if (threads && b.x * b.y * b.z > threads) fail("is one of more than the kernel's __launch_bounds__ allow");
}

void block_barrier(const char* file, int line) {
  Thread& t = *current;
  Block& b = *t.block;
  if (b.barrier.arrived && (b.barrier.line != line || strcmp(b.barrier.file, file)))
    fail(("is at the barrier in line " + std::to_string(line) + " while others are at the one in line " +
          std::to_string(b.barrier.line))
             .c_str());
  b.barrier.file = file;
  b.barrier.line = line;
  if (++b.barrier.arrived < b.live) return wait("is the last one that can run, and waits at a barrier");
  pass_barrier(b);
}

void cluster_barrier(const char* file, int line) {
  Barrier& barrier = machine.cluster_barrier;
  if (barrier.arrived && (barrier.line != line || strcmp(barrier.file, file)))
    fail("is at another barrier than the rest of its cluster");
  barrier.file = file;
  barrier.line = line;
  if (++barrier.arrived < live_in_cluster())
    return wait("is the last one that can run, and waits at a cluster's barrier");
  pass_cluster_barrier();
}

static const uint64_t* exchange_all(unsigned mask, uint64_t value, const char* file, int line) {
  Thread& t = *current;
  Warp& w = *t.warp;
  const unsigned own = t.number % 32;
  if (!(mask >> own & 1)) fail("takes part in an exchange whose mask leaves it out");
  if (mask & ~w.present) fail("exchanges with lanes that its block does not have");
  if (mask & w.done) fail("exchanges with lanes that have ended");
  if (w.arrived && (w.mask != mask || w.line != line || strcmp(w.file, file)))
    fail(("is at the exchange in line " + std::to_string(line) +
          " while other lanes of its warp are at the one in line " + std::to_string(w.line))
             .c_str());
  w.mask = mask;
  w.file = file;
  w.line = line;
  uint64_t* values = w.values[w.turn % 2];
  values[own] = value;
  w.arrived |= 1u << own;
  if (w.arrived != mask) {
    wait("is the last one that can run, and waits for other lanes of its warp");
    return values;
  }
  w.arrived = 0;
  ++w.turn;
  std::vector<Thread*> others;
  for (unsigned i = 0; i < 32; ++i)
    if (i != own && (mask >> i & 1)) others.push_back(&t.block->threads[t.number - own + i]);
  wake(others);
  return values;
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from, const char* file, int line) {
  const uint64_t* values = exchange_all(mask, value, file, line);
  if (!(mask >> from & 1)) fail("reads from a lane that the exchange's mask leaves out");
  return values[from];
}

unsigned ballot(unsigned mask, bool vote, const char* file, int line) {
  const uint64_t* values = exchange_all(mask, vote, file, line);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) votes |= unsigned((mask >> i & 1) && values[i]) << i;
  return votes;
}

void* shared(const void* key, size_t size, size_t align) {
  if (!key) size = machine.launch->shared;
  auto found = machine.variables.find(key);
  if (found == machine.variables.end()) {
    align = std::max<size_t>(align, 16);
    size_t at = 0;
    for (const auto& [k, v] : machine.variables) at = std::max(at, v.at + v.size + kGap);
    at = (at + align - 1) / align * align;
    machine.shared_bytes += size;
    const size_t most = machine.launch->shared ? shared_bytes_per_block() : 49152;
    if (machine.shared_bytes > most || at + size > kMemory) fail("needs more shared memory than a block has");
    found = machine.variables.emplace(key, Variable{at, size}).first;
    for (const Block& b : machine.blocks) memset(b.memory + at, 0xff, size);  // nan, and no index
  }
  return current->block->memory + found->second.at;
}

void* shared_of(const void* mine, unsigned rank) {
  const char* p = static_cast<const char*>(mine);
  if (p < current->block->memory || p >= current->block->memory + kMemory)
    fail("asks where another block has what is not in its own shared memory");
  if (rank >= machine.blocks.size()) fail("asks for the shared memory of a block that is not in its cluster");
  return machine.blocks[rank].memory + (p - current->block->memory);
}

void atomic(const void*, size_t) { current->atomic_next = true; }

void copy_async(void* to, const void* from, size_t size) {
  if (size != 4 && size != 8 && size != 16) fail("copies a number of bytes that is not 4, 8 or 16");
  if (uintptr_t(to) % size || uintptr_t(from) % size) fail("copies from or to what is not aligned to the copy's size");
  auto& groups = current->copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, size});
}

void commit_async() { current->copies.emplace_back(); }

void wait_async(size_t groups_left) {
  auto& groups = current->copies;
  // The last group is open: it has not been committed.
  while (groups.size() > groups_left + 1) {
    const auto group = groups.front();
    groups.erase(groups.begin());
    for (const Copy& copy : group) {
      access(const_cast<void*>(copy.from), copy.size, false, true);
      access(copy.to, copy.size, true, true);
      memcpy(copy.to, copy.from, copy.size);
    }
  }
}

void* seen(const void* data, int64_t bytes, int64_t itemsize, bool writable) {
  const auto lo = uintptr_t(data);
  machine.regions.push_back({lo, lo + uintptr_t(bytes), writable, itemsize});
  return const_cast<void*>(data);
}

void forget() { machine.regions.clear(); }
bool numbers_on_host() { return host_numbers; }
int compute_capability() { return capability; }
size_t shared_bytes_per_block() { return capability >= 90 ? 232448 : 166912; }

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

// What the tests set and ask.

void cuda_on_cpu_settings(int compute_capability, int thread_order, int numbers_on_host) {
  capability = compute_capability;
  order = thread_order;
  host_numbers = numbers_on_host;
}

int64_t cuda_on_cpu_count(int what) { return what == 0 ? launches : what == 1 ? accesses : clustered; }

const char* cuda_on_cpu_kernels() {
  static std::string names;
  names.clear();
  for (const std::string& name : kernels) names += name + "\n";
  return names.c_str();
}

// What torch has in a build with CUDA.

int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

void torch_c10_cuda_check_msg(int32_t error, const char* file, const char*, uint32_t line, bool, char** message) {
  if (!error) return;
  const std::string text = "CUDA error " + std::to_string(error) + " at " + file + ":" + std::to_string(line);
  *message = strdup(text.c_str());
}

void torch_c10_cuda_free_error_msg(char* message) { free(message); }

// What -fsanitize=thread calls.

#define ROBUSTFAST_ACCESS(size)                                                \
  void __tsan_read##size(void* p) { access(p, size, false, true); }            \
  void __tsan_write##size(void* p) { access(p, size, true, true); }            \
  void __tsan_volatile_read##size(void* p) { access(p, size, false, true); }   \
  void __tsan_volatile_write##size(void* p) { access(p, size, true, true); }   \
  void __tsan_unaligned_read##size(void* p) { access(p, size, false, false); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, true, false); }
ROBUSTFAST_ACCESS(1)
ROBUSTFAST_ACCESS(2)
ROBUSTFAST_ACCESS(4)
ROBUSTFAST_ACCESS(8)
ROBUSTFAST_ACCESS(16)

void __tsan_read_range(void* p, size_t size) { access(p, size, false, false); }
void __tsan_write_range(void* p, size_t size) { access(p, size, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Host code counts references and initialises statics atomically.
#define ROBUSTFAST_ATOMICS(bits)                                                                                       \
  int##bits##_t __tsan_atomic##bits##_load(const volatile int##bits##_t* p, int) {                                     \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                       \
  }                                                                                                                    \
  void __tsan_atomic##bits##_store(volatile int##bits##_t* p, int##bits##_t v, int) {                                  \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                          \
  }                                                                                                                    \
  int##bits##_t __tsan_atomic##bits##_exchange(volatile int##bits##_t* p, int##bits##_t v, int) {                      \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                                    \
  int##bits##_t __tsan_atomic##bits##_fetch_add(volatile int##bits##_t* p, int##bits##_t v, int) {                     \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                                    \
  int##bits##_t __tsan_atomic##bits##_fetch_sub(volatile int##bits##_t* p, int##bits##_t v, int) {                     \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                                    \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile int##bits##_t* p, int##bits##_t* expected,                \
                                                    int##bits##_t v, int, int) {                                       \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }                                                                                                                    \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile int##bits##_t* p, int##bits##_t* expected, int##bits##_t v, \
                                                  int, int) {                                                          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }
ROBUSTFAST_ATOMICS(8)
ROBUSTFAST_ATOMICS(16)
ROBUSTFAST_ATOMICS(32)
ROBUSTFAST_ATOMICS(64)
}
