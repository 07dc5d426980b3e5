// engine.cpp: runs the threads of a CUDA kernel on the CPU.
//
// A block is run by one OS thread, a worker; workers take blocks from a common counter, in no order that a kernel may rely on.
// Within a block each CUDA thread is a fiber: a function call with a stack of its own, that can be left in the middle and taken up
// again later. A fiber runs until it meets a barrier, then the next one runs. So only one thread of a block runs at any time, and a
// kernel without barriers never switches at all: its threads are plain function calls, one after another, on the same stack.
//
// Compiled five ways: as it is; -DINSPECT, with inspect.cpp; -DWITH_ASAN or -DWITH_TSAN, which tell a sanitizer about the fibers (the
// engine itself is always compiled without -fsanitize: switching stacks behind a sanitizer's back would look like a bug).
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <ucontext.h>
#include <vector>
#ifdef WITH_TSAN
#include <sanitizer/tsan_interface.h>
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif
#ifdef WITH_ASAN
#include <sanitizer/common_interface_defs.h>
#define ASAN(...) __VA_ARGS__
#else
#define ASAN(...)
#endif
#ifdef INSPECT
#include "inspect.h"
#define INSPECTED(...) __VA_ARGS__
#else
#define INSPECTED(...)
#endif

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;
__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace {
constexpr size_t STACK = 256 << 10;  // bytes a fiber; the system gives memory only for pages that are touched

struct Fiber {
    ucontext_t start;             // how to begin
    jmp_buf saved;                // where it was left; jumping there needs no system call
    char* stack = nullptr;
    size_t stack_size = STACK;
    uint3 index{};                // threadIdx of the CUDA thread it runs
    unsigned thread = 0;          // its number in the block
    bool fresh = false, done = false;
    void* tsan = nullptr;
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
    int line = 0;                 // where the first one waits: others elsewhere mean that the block has come apart
    char key[2];                  // addresses by which ThreadSanitizer knows who waited for whom
};

int setting(const char* name, int otherwise) { const char* text = getenv(name); return text ? atoi(text) : otherwise; }

// What runs the blocks of one OS thread, one at a time.
struct Worker {
    void (*body)(void*); void* context;                   // the kernel
    std::vector<Fiber> fibers; Fiber host;                // `host` is the worker itself, fiber -1
    int current = -1;
    unsigned threads, next, live, started, idle;          // of this block: all; next to start; not yet returned; fibers in use; vain turns
    std::vector<unsigned> order;                          // in which the threads start
    Barrier block_barrier;
    std::vector<Barrier> warp_barriers;                   // 32 a warp: one for each possible lowest lane of a mask
    std::vector<uint64_t> posted;                         // what each thread gives in a warp exchange
    std::vector<uint32_t> alive;                          // a bit a thread, a word a warp
    std::vector<uint64_t> dynamic_shared;
    std::string error;
    char joined;

    ~Worker() { for (auto& f : fibers) if (f.stack) munmap(f.stack, STACK); }
    Fiber& at(int i) { return i < 0 ? host : fibers[i]; }
    Fiber& now() { return fibers[current]; }

    // Leave the running fiber and take up another. Returns when somebody takes this one up again.
    void switch_to(int target) {
        if (target == current) return;
        Fiber &from = at(current), &to = at(target);
        from.index = threadIdx; current = target; threadIdx = to.index;
        TSAN(__tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);)
        ASAN(void* fake = nullptr; __sanitizer_start_switch_fiber(&fake, to.stack, to.stack_size);)
#if defined(WITH_ASAN) || defined(WITH_TSAN)
        swapcontext(&from.start, &to.start);              // the sanitizers dislike a longjmp to another stack
        ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
#else
        if (_setjmp(from.saved)) return;
        if (!to.fresh) _longjmp(to.saved, 1);
        to.fresh = false;
        setcontext(&to.start);
#endif
    }

    // The first function on a fiber's stack.
    static void enter(unsigned high, unsigned low) {
        Worker& w = *(Worker*)((uint64_t)high << 32 | low);
        ASAN(const void* stack; size_t size; __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
             if (!w.host.stack) w.host.stack = (char*)stack, w.host.stack_size = size;)
        w.run_threads();
        w.now().done = true;
        w.switch_to(w.choose());
    }

    // Run CUDA threads that have not started yet, one after another. Another fiber does the same while this one waits at a barrier.
    void run_threads() {
        while (next < threads) {
            unsigned t = order[next++];
            now().thread = t; idle = 0;
            threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
            body(context);
            --live; alive[t / 32] &= ~(1u << t % 32); idle = 0;
            TSAN(__tsan_release(&joined); break;)         // ThreadSanitizer must see one fiber a CUDA thread
        }
    }

    // Who runs next: a thread that has not started, else the next fiber that has not returned.
    int choose() {
        if (next < threads && started < threads) { TSAN(return started++;) prepare(started); return started++; }
        for (unsigned k = 1; k <= started; ++k) {
            int i = (current + k) % started;
            if (!fibers[i].done) return i;
        }
        return -1;
    }

    void prepare(unsigned i) {
        Fiber& f = fibers[i];
        if (!f.stack) f.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        f.fresh = true; f.done = false;
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = f.stack; f.start.uc_stack.ss_size = STACK; f.start.uc_link = nullptr;
        makecontext(&f.start, (void (*)())enter, 2, (unsigned)((uint64_t)this >> 32), (unsigned)(uint64_t)this);
    }

    // Wait until as many threads have arrived as `needed()` says. It is asked again and again: a thread that returns lowers it.
    template <class F> void wait(Barrier& barrier, int line, F needed, const char* what) {
        unsigned mine = barrier.generation;
        if (barrier.arrived && barrier.line != line)
            fail("divergent " + std::string(what) + ": some threads wait on line " + std::to_string(barrier.line) +
                 ", others on line " + std::to_string(line));
        barrier.line = line;
        TSAN(__tsan_release(&barrier.key[mine & 1]);)
        for (++barrier.arrived; barrier.generation == mine; switch_to(choose())) {
            if (barrier.arrived >= needed()) { barrier.arrived = 0; barrier.generation++; idle = 0; break; }
            // Everybody has started and two full turns brought nobody further
            if (next >= threads && ++idle > 2 * started + 2)
                fail("deadlock: threads wait for others that never come to the " + std::string(what) + " on line " + std::to_string(line));
        }
        TSAN(__tsan_acquire(&barrier.key[mine & 1]);)
    }

    // Give up the block: go back to the worker and never return to the fibers.
    void fail(const std::string& message) {
        error = message + ", in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                std::to_string(blockIdx.z) + ")";
        TSAN(__tsan_release(&joined);)
        switch_to(-1);
    }

    void run_block(unsigned count, int seed) {
        threads = live = count; next = started = idle = 0; block_barrier = Barrier(); error.clear();
        unsigned warps = (count + 31) / 32;
        if (fibers.size() < count) fibers.resize(count);
        warp_barriers.assign(warps * 32, Barrier()); posted.assign(warps * 32, 0); alive.assign(warps, 0); order.resize(count);
        for (unsigned t = 0; t < count; ++t) {
            alive[t / 32] |= 1u << t % 32;
            order[t] = seed == 1 ? count - 1 - t : t;
        }
        for (uint64_t random = seed, t = count - 1; seed > 1 && t > 0; --t) {         // shuffle
            random = random * 6364136223846793005u + 1442695040888963407u;
            std::swap(order[t], order[(random >> 33) % (t + 1)]);
        }
        TSAN(host.tsan = __tsan_get_current_fiber();
             for (unsigned i = 0; i < count; ++i) {
                 if (fibers[i].stack) munmap(fibers[i].stack, STACK);
                 fibers[i].stack = nullptr; prepare(i);
                 fibers[i].tsan = __tsan_create_fiber(0);
                 __tsan_set_fiber_name(fibers[i].tsan, ("CUDA thread " + std::to_string(order[i]) + " of block " + std::to_string(blockIdx.x) +
                                                        "," + std::to_string(blockIdx.y)).c_str());
             })
        while (live && error.empty()) switch_to(choose());
        TSAN(__tsan_acquire(&joined); for (unsigned i = 0; i < count; ++i) __tsan_destroy_fiber(fibers[i].tsan);)
    }

    void warp_wait(unsigned mask, int line) {
        unsigned warp = now().thread / 32;
        wait(warp_barriers[warp * 32 + __builtin_ctz(mask)], line,
             [this, mask, warp] { return (unsigned)__builtin_popcount(mask & alive[warp]); }, "warp operation");
    }
};

thread_local Worker* worker;
std::vector<std::unique_ptr<Worker>> workers;
std::mutex one_launch;
std::string message;
}  // namespace

extern "C" {
unsigned engine_thread() { return worker->now().thread; }
unsigned engine_lane() { return engine_thread() % 32; }
void* engine_dynamic_shared() { return worker->dynamic_shared.data(); }
#ifdef INSPECT
void engine_fail(const char* text) { worker->fail(text); }
bool engine_owns(unsigned long address, int size) {
    for (void* index : {(void*)&threadIdx, (void*)&blockIdx, (void*)&blockDim, (void*)&gridDim})
        if (address >= (uintptr_t)index && address + size <= (uintptr_t)index + sizeof(uint3)) return true;
    return false;
}
const char* engine_stack(size_t* size) { *size = STACK; return worker->now().stack; }
#else
void engine_atomic(void*, int) {}
#endif

void engine_barrier(int line) {
    worker->wait(worker->block_barrier, line, [] { return worker->live; }, "__syncthreads()");
    INSPECTED(inspect_barrier(engine_thread());)
}

void engine_warp_barrier(int line) {
    worker->warp_wait(~0u, line);
    INSPECTED(inspect_warp_barrier(engine_thread());)     // the only warp operation that orders memory
}

uint64_t engine_exchange(unsigned mask, uint64_t value, unsigned lane, int line) {
    unsigned t = engine_thread();
    worker->posted[t] = value;
    worker->warp_wait(mask, line);                        // everybody has posted
    value = worker->posted[t / 32 * 32 + lane % 32];
    worker->warp_wait(mask, line);                        // everybody has read
    return value;
}

// Each lane of the warp shows `bytes` bytes; `all` gets those of all 32, by lane. Not a word of CUDA: what plays the instructions by which
// a whole warp works together (tensor cores) is built on it.
void engine_gather(const void* mine, size_t bytes, void* all, int line) {
    unsigned first = engine_thread() / 32 * 32;
    worker->posted[engine_thread()] = (uint64_t)mine;
    worker->warp_wait(~0u, line);                         // everybody shows
    for (unsigned lane = 0; lane < 32; ++lane) {
        const void* other = (const void*)worker->posted[first + lane];
        if (worker->alive[first / 32] >> lane & 1) memcpy((char*)all + lane * bytes, other, bytes);
        else memset((char*)all + lane * bytes, 0xff, bytes);                          // NaN: it has returned, or there is none
    }
    worker->warp_wait(~0u, line);                         // everybody has looked
}

unsigned engine_ballot(unsigned mask, int predicate, int line) {
    unsigned t = engine_thread(), votes = 0;
    worker->posted[t] = predicate;
    worker->warp_wait(mask, line);
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) votes |= (unsigned)worker->posted[t / 32 * 32 + lane] << lane;
    worker->warp_wait(mask, line);
    return votes;
}

// Run a whole grid. Returns what went wrong, or null.
const char* engine_run(void (*body)(void*), void* context, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                       [[maybe_unused]] char* shared_begin, [[maybe_unused]] char* shared_end) {
    std::lock_guard<std::mutex> lock(one_launch);
    size_t blocks = (size_t)grid[0] * grid[1] * grid[2], threads = (size_t)block[0] * block[1] * block[2];
    int seed = setting("CUDA_ON_CPU_ORDER", 0);
    size_t count = std::max(1, setting("CUDA_ON_CPU_WORKERS", (int)std::thread::hardware_concurrency()));
    ASAN(count = 1;)                                      // static __shared__: one copy in all
    INSPECTED(count = 1; inspect_begin_launch((void*)body, blocks, threads, shared_begin, shared_end);)
    TSAN(count = 8;)                                      // nothing orders two blocks, as on a GPU; a fiber takes 1 MB here
    count = std::min(count, blocks);
    while (workers.size() < count) workers.emplace_back(new Worker);
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    auto work = [&](size_t w) {
        worker = workers[w].get();
        worker->body = body; worker->context = context;
        gridDim = {grid[0], grid[1], grid[2]}; blockDim = {block[0], block[1], block[2]};
        ASAN(worker->host.stack = nullptr;)
        body(nullptr);
        for (size_t i; !failed && (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
            blockIdx = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])};
            worker->dynamic_shared.assign((shared_bytes + 7) / 8, 0xcdcdcdcdcdcdcdcdull);  // rubbish, as on a GPU
            INSPECTED(inspect_begin_block(i, (char*)worker->dynamic_shared.data(), shared_bytes);)
            worker->run_block(threads, seed);
            INSPECTED(if (worker->error.empty()) inspect_end_block();)
            if (!worker->error.empty() && !failed.exchange(true)) message = worker->error;
        }
    };
    std::vector<std::thread> others;
    for (size_t w = 1; w < count; ++w) others.emplace_back(work, w);
    work(0);
    for (auto& other : others) other.join();
    INSPECTED(inspect_end_launch();)
    return failed ? message.c_str() : nullptr;
}
}
