// Threads: OpenMP, so that threadpoolctl and omp_set_num_threads govern them.
#pragma once
#include <omp.h>

#include <cstdint>

namespace flash {

// Calls work(worker, task) once for every task, on at most `workers` threads. Tasks start in order.
template <class Work>
void parallel(int workers, int64_t tasks, const Work &work) {
  if (workers <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) work(0, task);
    return;
  }
  int64_t next = 0;
#pragma omp parallel num_threads(workers)
  {
    const int worker = omp_get_thread_num();
    for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) work(worker, task);
  }
}

}  // namespace flash
