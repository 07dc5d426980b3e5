// inspect.cpp: sees every access to memory, checks it, and counts what the memory of a GPU would have to do for it.
//
// The kernel is compiled with -fsanitize=thread, which puts a call such as __tsan_read4(address) in front of every load and store. No
// sanitizer is linked: these functions are defined here. Each access is
//   checked at once: inside an array, or shared memory that has been written, and in order with the accesses of other threads;
//   kept until its block has ended, then counted by warps: the k-th time that each lane is at one instruction is one access of the warp.
// A GPU serves the 32 lanes of a warp together. Global memory comes in sectors of 32 bytes. Shared memory has 32 banks of 4 bytes; lanes
// that want different words of one bank wait for one another (a conflict).
#include "inspect.h"
#include <algorithm>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <stdint.h>
#include <stdio.h>
#include <string>
#include <unordered_map>
#include <vector>

namespace {
enum Kind { READ, WRITE, ATOMIC };
const char* const VERB[] = {"reads", "writes", "atomically changes"};
constexpr int SHARED = -1, ELSEWHERE = -2;  // spaces; 0, 1, ... are the array arguments

// `address` counts from the beginning of its array, which on a GPU lies at a multiple of 256 bytes.
struct Access { uintptr_t address; uint32_t pc; int16_t space; uint8_t size, kind; };

// Who touched a word of 4 bytes last. Epochs count the barriers that a thread has passed.
struct Touch { int64_t thread = -1; uint32_t epoch = 0, warp_epoch = 0; uint8_t kind = READ; };
struct Word { Touch writer, reader, other_reader; };

struct Array { uintptr_t begin, end; bool writable; std::vector<Word> words; std::vector<int64_t> seen; size_t a_block, a_launch; };

struct Count { uint64_t accesses, lanes, bytes, sectors, passes, least_passes; };  // passes: of shared memory, conflicts included
struct Line { uint64_t pc, space, kind, size; Count count; };

std::vector<Array> arrays;
std::vector<std::pair<uintptr_t, uintptr_t>> constants;  // of the kernel's library
uintptr_t library_base;
uintptr_t shared_begin, shared_end, dynamic_begin, dynamic_end;
std::vector<Word> shared_words, dynamic_words;
std::vector<std::vector<Access>> accesses;             // by thread of the block
std::vector<uint32_t> epochs, warp_epochs;
std::map<std::tuple<uint32_t, int, int, int>, Count> counts;
std::vector<Line> lines;
std::vector<Access> trace;
std::vector<uint32_t> trace_threads;
int64_t traced_block = -1;
int64_t block_number;
bool active = false;

bool inside(uintptr_t a, int size, uintptr_t begin, uintptr_t end) { return a >= begin && a + size <= end; }

int space_of(uintptr_t a, int size) {
    for (size_t i = 0; i < arrays.size(); ++i) if (inside(a, size, arrays[i].begin, arrays[i].end)) return i;
    if (inside(a, size, shared_begin, shared_end) || inside(a, size, dynamic_begin, dynamic_end)) return SHARED;
    return ELSEWHERE;
}

std::string at(uint32_t pc) { char text[32]; snprintf(text, sizeof text, "@0x%x@", pc); return text; }  // Python finds the line

std::string describe(const Touch& t) {
    int64_t threads = accesses.size();
    return "thread " + std::to_string(t.thread % threads) + " of block " + std::to_string(t.thread / threads);
}

[[noreturn]] void fail(const std::string& text) {
    engine_fail(text.c_str());
    __builtin_unreachable();
}

void out_of_bounds(uintptr_t a, int size, Kind kind, uint32_t pc) {
    std::string where = "outside of every array";
    uintptr_t nearest = 4096;
    for (size_t i = 0; i < arrays.size(); ++i) {
        if (a >= arrays[i].end && a - arrays[i].end < nearest) {
            nearest = a - arrays[i].end;
            where = std::to_string(nearest) + " bytes after the end of argument #" + std::to_string(i) + "#";
        }
        if (a < arrays[i].begin && arrays[i].begin - a < nearest) {
            nearest = arrays[i].begin - a;
            where = std::to_string(nearest) + " bytes before the start of argument #" + std::to_string(i) + "#";
        }
    }
    if (a >= shared_begin && a < shared_end + 4096 && shared_end) where = "past the end of shared memory";
    if (a >= dynamic_begin && a < dynamic_end + 4096 && dynamic_end) where = "past the end of dynamic shared memory";
    fail(std::string(VERB[kind]) + " " + std::to_string(size) + " bytes " + where + ", " + at(pc) + ", thread " +
         std::to_string(engine_thread()));
}

// Are these two accesses in an order that barriers give?
bool ordered(const Touch& before, const Touch& now) {
    int64_t threads = accesses.size();
    if (before.thread < 0 || before.thread == now.thread) return true;
    if (before.thread / threads != now.thread / threads) return false;  // nothing orders two blocks
    if (before.epoch != now.epoch) return true;
    return before.thread % threads / 32 == now.thread % threads / 32 && before.warp_epoch != now.warp_epoch;
}

void race(const Touch& before, const Touch& now, uint32_t pc, const char* memory) {
    fail("race in " + std::string(memory) + " memory: " + describe(now) + " " + VERB[now.kind] + " what " + describe(before) + " " +
         VERB[before.kind] + ", with no barrier between, " + at(pc));
}

void check_word(Word& word, Kind kind, uint32_t pc, bool is_shared) {
    unsigned t = engine_thread();
    Touch now{block_number * (int64_t)accesses.size() + t, epochs[t], warp_epochs[t], (uint8_t)kind};
    const char* memory = is_shared ? "shared" : "global";
    bool both_atomic = kind == ATOMIC && word.writer.kind == ATOMIC;
    if (!both_atomic && !ordered(word.writer, now)) race(word.writer, now, pc, memory);
    if (kind == READ) {
        if (is_shared && word.writer.thread < 0) fail("reads shared memory that no thread of the block has written, " + at(pc) + ", thread " + std::to_string(t));
        if (word.reader.thread >= 0 && word.reader.thread != now.thread) word.other_reader = word.reader;
        word.reader = now;
    } else {
        if (!ordered(word.reader, now)) race(word.reader, now, pc, memory);
        if (!ordered(word.other_reader, now)) race(word.other_reader, now, pc, memory);
        word.writer = now;
    }
}

void access(const void* pointer, int size, Kind kind, void* return_address) {
    if (!active) return;
    uintptr_t a = (uintptr_t)pointer;
    uint32_t pc = (uintptr_t)return_address - 1 - library_base;
    int space = space_of(a, size);
    if (space == ELSEWHERE) {
        size_t stack_size;
        uintptr_t stack = (uintptr_t)engine_stack(&stack_size);
        if (engine_owns(a, size)) return;          // threadIdx and the like
        if (inside(a, size, stack, stack + stack_size)) return;  // a local variable
        if (kind == READ) for (auto [begin, end] : constants) if (inside(a, size, begin, end)) return;
        out_of_bounds(a, size, kind, pc);
    }
    if (a % std::min(size, 16)) fail("misaligned: " + std::string(VERB[kind]) + " " + std::to_string(size) + " bytes at an address that is no multiple, " + at(pc));
    if (space != SHARED && kind != READ && !arrays[space].writable) fail("writes to the constant argument #" + std::to_string(space) + "#, " + at(pc));
    if (size >= 4) {
        for (int i = 0; i < size; i += 4) {
            if (space != SHARED) check_word(arrays[space].words[(a - arrays[space].begin + i) / 4], kind, pc, false);
            else if (a >= dynamic_begin && a < dynamic_end) check_word(dynamic_words[(a - dynamic_begin + i) / 4], kind, pc, true);
            else check_word(shared_words[(a - shared_begin + i) / 4], kind, pc, true);
        }
    }
    accesses[engine_thread()].push_back({space == SHARED ? a : a - arrays[space].begin, pc, (int16_t)space, (uint8_t)size, (uint8_t)kind});
}

// One access of a warp: the addresses of the lanes that take part.
struct Together { uintptr_t address[32]; uint32_t lanes; };

unsigned sectors(const Together& w, int size) {
    uintptr_t touched[128];
    unsigned n = 0;
    for (int lane = 0; lane < 32; ++lane) if (w.lanes >> lane & 1)
        for (uintptr_t s = w.address[lane] / 32; s <= (w.address[lane] + size - 1) / 32; ++s) touched[n++] = s;
    std::sort(touched, touched + n);
    return std::unique(touched, touched + n) - touched;
}

// Passes over shared memory: of the lanes that are served together (32 of 4 bytes, 16 of 8, 8 of 16), the most distinct words in one bank.
unsigned passes(const Together& w, int size) {
    int group = size <= 4 ? 32 : size == 8 ? 16 : 8;
    unsigned total = 0;
    for (int first = 0; first < 32; first += group) {
        std::vector<uintptr_t> bank[32];
        unsigned most = 0;
        for (int lane = first; lane < first + group; ++lane) if (w.lanes >> lane & 1)
            for (uintptr_t word = w.address[lane] / 4; word <= (w.address[lane] + size - 1) / 4; ++word) {
                auto& b = bank[word % 32];
                if (std::find(b.begin(), b.end(), word) == b.end()) b.push_back(word);
                most = std::max(most, (unsigned)b.size());
            }
        total += most;
    }
    return total;
}

void count_warp(size_t first_thread, size_t last_thread) {
    std::map<std::tuple<uint32_t, int, int, int>, std::vector<Together>> together;
    for (size_t t = first_thread; t < last_thread; ++t) {
        std::unordered_map<uint64_t, std::pair<size_t, std::vector<Together>*>> place;  // how often this lane has been here
        for (const Access& a : accesses[t]) {
            uint64_t key = (uint64_t)a.pc << 24 | (uint64_t)(a.space + 2) << 16 | a.size << 8 | a.kind;
            auto& [times, rows] = place[key];
            if (!rows) rows = &together[{a.pc, a.space, a.kind, a.size}];
            if (rows->size() <= times) rows->push_back({});
            (*rows)[times].address[t - first_thread] = a.address;
            (*rows)[times].lanes |= 1u << (t - first_thread);
            ++times;
        }
    }
    for (auto& [key, rows] : together) {
        auto [pc, space, kind, size] = key;
        Count& c = counts[key];
        for (const Together& w : rows) {
            int lanes = __builtin_popcount(w.lanes);
            c.accesses++; c.lanes += lanes; c.bytes += (uint64_t)lanes * size;
            if (space == SHARED) {
                c.passes += passes(w, size);
                int group = size <= 4 ? 32 : size == 8 ? 16 : 8;
                for (int first = 0; first < 32; first += group) c.least_passes += (w.lanes >> first & (group == 32 ? ~0u : (1u << group) - 1)) != 0;
            } else c.sectors += sectors(w, size);
        }
    }
}
}  // namespace

void inspect_begin_launch(void* kernel, size_t, size_t threads, char* begin, char* end) {
    counts.clear(); lines.clear(); trace.clear(); trace_threads.clear(); constants.clear();
    accesses.assign(threads, {}); epochs.resize(threads); warp_epochs.resize(threads);
    shared_begin = (uintptr_t)begin; shared_end = (uintptr_t)end;
    Dl_info info;
    dladdr(kernel, &info);
    library_base = (uintptr_t)info.dli_fbase;
    dl_iterate_phdr([](dl_phdr_info* lib, size_t, void*) {
        if (lib->dlpi_addr != library_base) return 0;
        for (int i = 0; i < lib->dlpi_phnum; ++i)
            if (lib->dlpi_phdr[i].p_type == PT_LOAD && !(lib->dlpi_phdr[i].p_flags & PF_W))
                constants.push_back({library_base + lib->dlpi_phdr[i].p_vaddr, library_base + lib->dlpi_phdr[i].p_vaddr + lib->dlpi_phdr[i].p_memsz});
        return 1;
    }, nullptr);
    active = true;
}

void inspect_begin_block(size_t block, char* dynamic, size_t bytes) {
    block_number = block;
    dynamic_begin = (uintptr_t)dynamic; dynamic_end = dynamic_begin + bytes;
    shared_words.assign((shared_end - shared_begin + 3) / 4, Word());
    dynamic_words.assign((bytes + 3) / 4, Word());
    std::fill(epochs.begin(), epochs.end(), 0); std::fill(warp_epochs.begin(), warp_epochs.end(), 0);
    for (auto& a : accesses) a.clear();
}

void inspect_barrier(unsigned thread) { epochs[thread]++; }
void inspect_warp_barrier(unsigned thread) { warp_epochs[thread]++; }

void inspect_end_block() {
    for (size_t first = 0; first < accesses.size(); first += 32) count_warp(first, std::min(first + 32, accesses.size()));
    for (size_t t = 0; t < accesses.size(); ++t) for (const Access& a : accesses[t]) {
        if (a.space >= 0) {
            Array& array = arrays[a.space];
            for (uintptr_t s = a.address / 32; s <= (a.address + a.size - 1) / 32; ++s) {
                int64_t& last = array.seen[s];
                array.a_launch += last < 0; array.a_block += last != block_number; last = block_number;
            }
        }
        if (block_number == traced_block) { trace.push_back(a); trace_threads.push_back(t); }
    }
}

void inspect_end_launch() { active = false; }

extern "C" {
void engine_atomic(void* address, int size) { access(address, size, ATOMIC, __builtin_return_address(0)); }

// ---- for Python ----
void inspect_arrays(const uint64_t* begins, const uint64_t* sizes, const int* writable, int count, int64_t block_to_trace) {
    arrays.clear();
    traced_block = block_to_trace;
    for (int i = 0; i < count; ++i) {
        uintptr_t begin = begins[i], end = begin + sizes[i];
        arrays.push_back({begin, end, writable[i] != 0, std::vector<Word>((sizes[i] + 3) / 4), std::vector<int64_t>(sizes[i] / 32 + 1, -1), 0, 0});
    }
}
size_t inspect_lines(const Line** out) {
    lines.clear();
    for (auto& [key, count] : counts) {
        auto [pc, space, kind, size] = key;
        lines.push_back({pc, (uint64_t)(int64_t)space, (uint64_t)kind, (uint64_t)size, count});
    }
    *out = lines.data();
    return lines.size();
}
size_t inspect_trace(const Access** out, const uint32_t** threads) { *out = trace.data(); *threads = trace_threads.data(); return trace.size(); }
void inspect_distinct(int array, size_t* a_block, size_t* a_launch) { *a_block = arrays[array].a_block; *a_launch = arrays[array].a_launch; }

// ---- what the compiler calls in front of every access ----
#define HOOK(n)                                                                                             \
    void __tsan_read##n(void* p) { access(p, n, READ, __builtin_return_address(0)); }                       \
    void __tsan_write##n(void* p) { access(p, n, WRITE, __builtin_return_address(0)); }                     \
    void __tsan_unaligned_read##n(void* p) { access(p, n, READ, __builtin_return_address(0)); }             \
    void __tsan_unaligned_write##n(void* p) { access(p, n, WRITE, __builtin_return_address(0)); }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { access(p, n, WRITE, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_atomic_thread_fence(int) {}
// Behind engine_atomic, which has counted the access. One OS thread runs all blocks here, so plain code is atomic enough.
#define ATOMIC_HOOK(bits)                                                                                            \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) { return *p; }                  \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t* p, uint##bits##_t*, uint##bits##_t v, \
                                                      int, int) { *p = v; return 1; }
ATOMIC_HOOK(8) ATOMIC_HOOK(16) ATOMIC_HOOK(32) ATOMIC_HOOK(64)
}
