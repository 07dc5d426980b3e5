// inspect.h: what the engine tells the inspector (inspect.cpp), and what it can ask the engine.
#pragma once
#include <stddef.h>

void inspect_begin_launch(void* kernel, size_t blocks, size_t threads, char* shared_begin, char* shared_end);
void inspect_begin_block(size_t block, char* dynamic_shared, size_t bytes);
void inspect_barrier(unsigned thread);       // this thread has passed a __syncthreads()
void inspect_warp_barrier(unsigned thread);  // this thread has passed a __syncwarp()
void inspect_end_block();
void inspect_end_launch();                   // also of one that failed

extern "C" {
unsigned engine_thread();                    // number of the running thread in its block
bool engine_owns(unsigned long address, int size);  // is this threadIdx, blockIdx, blockDim or gridDim?
const char* engine_stack(size_t* size);        // the running fiber's
void engine_fail(const char* message);       // give up the launch; does not return
}
